"""Two real ranks of which one alone has a loss that is no number: both stop, before a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from aligndet_train.finetuning.nonfinite import StopAtNonFiniteHook
from aligndet_train.monitoring.nonfinite import NonFiniteLossError
from tests.aligndet_train.test_distributed import free_port


def one_step(rank: int, port: int, losses: list[float], folder: str) -> None:
    """What a rank says after the step whose loss is ``losses[rank]``, into a file of its number."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(losses))
    hook, runner = StopAtNonFiniteHook("Lower the rate"), SimpleNamespace(iter=6)
    batch = {"data_samples": [SimpleNamespace(img_path=f"{rank}.jpg")]}
    said = "went on"
    try:
        hook.after_train_iter(runner, 6, batch, {"loss": torch.tensor(losses[rank])})
    except NonFiniteLossError as error:
        said = str(error)
    Path(folder, str(rank)).write_text(said)
    dist.destroy_process_group()


def said_by_two(losses: list[float], folder: Path) -> list[str]:
    multiprocessing.spawn(one_step, (free_port(), losses, str(folder)), nprocs=2)
    return [(folder / str(rank)).read_text() for rank in range(2)]


@pytest.mark.slow
def test_both_ranks_stop_and_the_one_at_fault_names_its_images(tmp_path: Path) -> None:
    assert said_by_two([1.0, float("nan")], tmp_path) == [
        "step 7: a loss of another rank is not finite. Lower the rate",
        "step 7: loss is nan (images 1.jpg). Lower the rate",
    ]


@pytest.mark.slow
def test_both_ranks_go_on_while_their_losses_are_numbers(tmp_path: Path) -> None:
    assert said_by_two([1.0, 2.0], tmp_path) == ["went on", "went on"]
