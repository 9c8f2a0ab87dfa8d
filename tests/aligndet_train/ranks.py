"""Two and more real ranks (gloo, CPU): of a verb, or that call one function without a run around it."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import multiprocessing

from proposals.errors import AlignDetError
from tests.aligndet_train.forked import Command, context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_two_ranks(arguments: list[str]) -> list[Command]:
    """As two nodes' launchers would start them."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [*arguments, "--launcher", "pytorch"]
    return [Command(words, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"]


def said_by_ranks(call: Callable[[int, Any], None], given: Sequence[Any], folder: Path) -> list[str | None]:
    """The AlignDetError that ``call(rank, given[rank])`` raised on each rank, None where it returned.

    call: a function of a module, which the processes import.
    """
    context()
    arguments = (call, given, free_port(), folder)
    multiprocessing.start_processes(_rank, arguments, nprocs=len(given), start_method="forkserver")
    errors = [folder / str(rank) for rank in range(len(given))]
    return [error.read_text() if error.exists() else None for error in errors]


def _rank(rank: int, call: Callable[[int, Any], None], given: Sequence[Any], port: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(given))
    try:
        call(rank, given[rank])
    except AlignDetError as error:
        (folder / str(rank)).write_text(str(error))
    dist.destroy_process_group()
