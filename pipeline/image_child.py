"""The child of `pipeline.image_process`: one thread that takes requests from a pipe until it is closed.

python -m pipeline.image_child PIPE SLOT...

All are descriptors; the bytes of an image are in the slot that its request names.
"""

import ctypes
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import cv2

from pipeline import planted_faults
from pipeline.image_records import Kernel, Stopwatch
from pipeline.image_task import mine_image
from pipeline.limits import Limits
from pipeline.shared_bytes import read_shared
from proposals.errors import AlignDetError
from proposals.selective_search.engines import load_kernels

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the pipe whose descriptor is the first argument."""
    _end_with_parent()
    pipe, *slots = map(int, sys.argv[1:])
    connection = Connection(pipe)
    with suppress(EOFError, BrokenPipeError):
        kernel, limits = connection.recv()
        _prepare(kernel, limits)
        connection.send(None)
        while True:
            uri, slot, size, sha256 = connection.recv()
            connection.send(_answer(uri, slots[slot], size, sha256, kernel))


def _answer(uri: str, slot: int, size: int, sha256: str, kernel: Kernel) -> object:
    watch = Stopwatch()
    try:
        planted_faults.strike_child(uri)
        return mine_image(read_shared(slot, size), sha256, kernel, watch), watch.seconds
    except (AlignDetError, MemoryError) as error:
        return error
    except Exception as error:  # a fault of ours, not of the image: the shard fails and says so
        return RuntimeError(f"{type(error).__name__}: {error}")


def _prepare(kernel: Kernel, limits: Limits) -> None:
    cv2.setNumThreads(1)
    if kernel.engine == "fast":
        load_kernels()
    _limit_memory(limits.memory)


def _end_with_parent() -> None:
    # A terminal's Ctrl-C goes to every process of its group, and a worker that drains still needs its child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(
        AttributeError, OSError
    ):  # Linux only; elsewhere the closed pipe ends a child that is not busy
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory(room: int) -> None:
    """Allow ``room`` bytes besides what is taken now; beyond, allocations fail with MemoryError.

    RLIMIT_DATA counts private writable pages: unlike RLIMIT_AS no address space that numba and OpenBLAS only
    reserve, and unlike a watched RSS it cannot be outrun between two looks.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        limit = int(lines["VmData"].split()[0]) * 1024 + room
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(
            resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
        )


if __name__ == "__main__":
    main()
