"""Memory of a training run on a CPU: what tensors leave is kept for the next ones."""

import ctypes
import sys

from mmengine.device import get_device

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let malloc reuse what is freed instead of returning it to the kernel; whether it does. Nothing with a GPU.

    Every step on a CPU frees what the next one asks for again, and malloc gives large tensors back: the kernel must
    then clear each page anew, which takes a good part of a step (benchmarks/freed_memory.py). For the whole process,
    and for workers that are forked from it: each is as large from then on as it was in its largest moment. Only glibc
    has it.
    """
    if sys.platform != "linux" or get_device() != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No further arenas: those of threads are limited to 64 MB, and return what they have.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    taken = [mallopt(name, value) for name, value in settings]
    return taken == [1] * len(settings)
