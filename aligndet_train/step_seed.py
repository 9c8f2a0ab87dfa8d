"""The seed of a step: a function of the run's, the step and the rank, so that a resume needs only the step."""

import numpy as np
import torch
from mmengine.dist import get_rank


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for ``step`` on this rank."""
    sequence = np.random.SeedSequence([seed, step, get_rank()])
    torch.manual_seed(int(sequence.generate_state(1)[0]))
