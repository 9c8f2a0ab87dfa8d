"""Schedules as arrays indexed by the step, so that resuming needs nothing but the step."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Schedule = npt.NDArray[np.float64]


def warmup_multistep(
    total: int, *, warmup: int, warmup_ratio: float, milestones: Sequence[float], gamma: float
) -> Schedule:
    """[total] learning-rate factors: linear warm-up from ``warmup_ratio`` to 1, then ``gamma`` at each milestone.

    warmup: its steps; with 0 the first step has the full rate. milestones: fractions of the run in (0, 1); 8/12 is
    "after epoch 8 of 12".
    """
    steps = np.arange(total)
    factors = gamma ** sum((steps >= round(m * total)).astype(np.float64) for m in milestones)
    done = np.minimum(1.0, steps / warmup) if warmup else 1.0
    ramp = warmup_ratio + (1 - warmup_ratio) * done
    return np.asarray(factors * ramp * np.ones(total), dtype=np.float64)


def half_cosine(start: float, end: float, total: int) -> Schedule:
    """[total] values from ``start`` to ``end`` along half a cosine (the teacher's momentum in AlignDet)."""
    progress = np.arange(total) / max(1, total - 1)
    return np.asarray(end - (end - start) * (np.cos(math.pi * progress) + 1) / 2, dtype=np.float64)
