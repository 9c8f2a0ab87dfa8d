"""Two real ranks of which one alone has a loss that is no number: both stop, before a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aligndet_train.finetuning.nonfinite import StopAtNonFiniteHook
from tests.aligndet_train.ranks import said_by_ranks


def one_step(rank: int, loss: float) -> None:
    """The hook after a step of that loss."""
    batch = {"data_samples": [SimpleNamespace(img_path=f"{rank}.jpg")]}
    hook = StopAtNonFiniteHook("Lower the rate")
    hook.after_train_iter(SimpleNamespace(iter=6), 6, batch, {"loss": torch.tensor(loss)})


@pytest.mark.slow
def test_both_ranks_stop_and_the_one_at_fault_names_its_images(tmp_path: Path) -> None:
    assert said_by_ranks(one_step, [1.0, float("nan")], tmp_path) == [
        "step 7: a loss of another rank is not finite. Lower the rate",
        "step 7: loss is nan (images 1.jpg). Lower the rate",
    ]


@pytest.mark.slow
def test_both_ranks_go_on_while_their_losses_are_numbers(tmp_path: Path) -> None:
    assert said_by_ranks(one_step, [1.0, 2.0], tmp_path) == [None, None]
