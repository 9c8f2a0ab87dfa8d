"""Several processes, one for each GPU (or CPU, with gloo): joining them, their averages, stopping together.

Everything here is also right in a single process, where it does nothing.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from torch import Tensor, nn

from proposals.errors import AlignDetError

_STARTERS = {"pytorch": "torchrun --nproc-per-node N -m proposals pretrain ...", "slurm": "srun"}
RANK_VARIABLES = {"pytorch": "RANK", "slurm": "SLURM_PROCID"}
"""Where each launcher says the rank; mmengine's is known only once the ranks have joined."""
# What torch's backends say when the process at the other end of a connection is gone.
_LOST = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Socket closed",
    "NCCL",
    "Timed out waiting",
    "gloo",
)


def unwrapped(model: Any) -> Any:
    """``model`` itself, where mmengine wrapped it for several processes."""
    return model.module if is_model_wrapper(model) else model


def is_first(launcher: str) -> bool:
    """Whether this is the process that speaks for all that ``launcher`` started; also while they have not joined."""
    return os.environ.get(RANK_VARIABLES.get(launcher, ""), "0") == "0"


@contextmanager
def joined_processes(launcher: str) -> Iterator[None]:
    """Join the process group that ``launcher`` described in the environment, and leave it at the end, also of an error.

    none: there is only this process. pytorch or slurm: NCCL where there is CUDA, gloo elsewhere. Raises AlignDetError
    for an unknown launcher, when this process was not started by it, and for none when torchrun started several.
    """
    if launcher == "none":
        _require_alone()
    else:
        _join(launcher)
    try:
        yield
    finally:
        if dist.is_initialized():
            _host_group.cache_clear()
            dist.destroy_process_group()


def _require_alone() -> None:
    started = os.environ.get("WORLD_SIZE", "1")
    # Other programs leave a WORLD_SIZE behind; this one is torchrun's own.
    if "TORCHELASTIC_RUN_ID" in os.environ and started != "1":
        raise AlignDetError(
            f"torchrun started {started} processes, each of which would be a run of its own: add --launcher pytorch, "
            "which joins them to one"
        )


def _join(launcher: str) -> None:
    variable = RANK_VARIABLES.get(launcher)
    if variable is None:
        raise AlignDetError(f"no launcher {launcher!r}: none, pytorch or slurm")
    if variable not in os.environ:
        raise AlignDetError(
            f"--launcher {launcher} expects to be started by its launcher ({variable} is not set): "
            f"{_STARTERS[launcher]}"
        )
    if launcher == "slurm":
        _translate_slurm()
    if torch.cuda.is_available():
        place = int(os.environ["LOCAL_RANK"])
        device = gpu_of_process(place, torch.cuda.device_count(), launcher)
        torch.cuda.set_device(device)
        # mmengine takes it for the device, too.
        os.environ["LOCAL_RANK"] = str(device)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def gpu_of_process(place: int, visible: int, launcher: str) -> int:
    """The GPU of the process at ``place`` on its node, of the ``visible`` ones that it sees.

    Under Slurm a task that sees one GPU has it for itself (--gpus-per-task). Raises AlignDetError when there are more
    processes than GPUs.
    """
    if launcher == "slurm" and visible == 1:
        return 0
    if place >= visible:
        fewer = "--nproc-per-node" if launcher == "pytorch" else "--ntasks-per-node"
        raise AlignDetError(
            f"process {place} of this node has no GPU: it sees {visible}, and every process needs its own. Start "
            f"fewer processes ({fewer} {visible}), or make more GPUs visible (CUDA_VISIBLE_DEVICES)"
        )
    return place


def _translate_slurm() -> None:
    """Slurm's variables under the names torch reads."""
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    os.environ.update({ours: os.environ[theirs] for ours, theirs in names.items()})
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        nodes = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        os.environ["MASTER_ADDR"] = nodes.stdout.split()[0]


def wrapped(model: nn.Module) -> nn.Module:
    """``model`` with its gradients averaged over the processes; itself in a single process.

    Each process keeps its own batch statistics (YOLOX, NAS-FPN), as in mmdet, and rank 0's are saved; where a config
    asks for those of all (SyncBN, RTMDet) torch has them on GPUs alone.
    """
    if not torch.cuda.is_available():
        model = revert_sync_batchnorm(model)
    if get_world_size() == 1:
        return model
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    wrapper: nn.Module = MMDistributedDataParallel(
        model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    return wrapper


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of ``values``, any shape, over all ranks, without gradient; ``values`` detached in a single process."""
    values = values.detach()
    if get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= get_world_size()
    return values


def averaged_figures(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars of the same names on every rank, in float32, averaged over the ranks in one collective."""
    averaged = mean_over_ranks(torch.stack([value.detach().float() for value in figures.values()]))
    return dict(zip(figures, averaged.unbind(), strict=True))


def rows_of_other_ranks(rows: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """What the other ranks called this with: ``rows`` [F, D] without gradient, and which of them are real, [F] bool.

    rows: [N, D], another N on every rank. most: an upper bound of N, the same on every rank; None asks the ranks for
    their largest N, which waits for the device.
    """
    if most is None:
        largest = torch.tensor(len(rows), device=rows.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        most = int(largest)
    padded = rows.new_zeros((most, rows.shape[1] + 1))
    padded[: len(rows), :-1] = rows.detach()
    padded[: len(rows), -1] = 1
    received = [torch.empty_like(padded) for _ in range(get_world_size())]
    dist.all_gather(received, padded)
    others = torch.cat([part for rank, part in enumerate(received) if rank != get_rank()])
    return others[:, :-1], others[:, -1] > 0


@cache
def _host_group() -> Any:
    return dist.new_group(backend="gloo")


def sum_over_hosts(count: int) -> int:
    """``count``, added up over the ranks. Every rank must call it; hosts wait for each other, no GPU is waited for."""
    if get_world_size() == 1:
        return count
    total = torch.tensor(count)
    dist.all_reduce(total, group=_host_group())
    return int(total)


def spread_over_hosts(number: int) -> int:
    """How far the largest ``number`` of all ranks lies above the smallest; see sum_over_hosts."""
    if get_world_size() == 1:
        return 0
    ends = torch.tensor([number, -number])
    dist.all_reduce(ends, dist.ReduceOp.MAX, group=_host_group())
    return int(ends.sum())


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is set on any rank; see sum_over_hosts."""
    return sum_over_hosts(int(flag)) > 0


@contextmanager
def lost_ranks_explained(hint: str) -> Iterator[None]:
    """Turn the failure of a collective, whose other end is gone, into an AlignDetError that ends with ``hint``."""
    try:
        yield
    except RuntimeError as error:
        if get_world_size() == 1 or not any(mark in str(error) for mark in _LOST):
            raise
        reason = str(error).strip().splitlines()[0]
        raise AlignDetError(
            f"rank {get_rank()} of {get_world_size()} lost another rank, whose process or node died ({reason}). {hint}"
        ) from error
