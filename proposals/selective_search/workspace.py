"""Buffers that outlive an image: fresh pages cost a mining process 15 % of its time, and one image is like the next."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


class Workspace:
    """Named arrays that only ever grow. Contents are undefined; asking again for a name invalidates what it gave."""

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A C-contiguous array of this shape and dtype in the buffer of this name."""
        shape = (shape,) if isinstance(shape, int) else shape
        count = 1
        for length in shape:
            count *= length
        needed = count * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < needed:
            buffer = self._buffers[name] = np.empty(needed, np.uint8)
        return buffer[:needed].view(dtype).reshape(shape)

    def table(self, name: str, least: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array for a hash table: the first power of two that holds `least` entries."""
        return self.array(name, 1 << max(least - 1, 1).bit_length(), dtype)

    @property
    def nbytes(self) -> int:
        """What all buffers hold together, in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


_LOCAL = threading.local()


def current() -> Workspace:
    """The calling thread's workspace; a mining process has one thread and so one workspace."""
    if not hasattr(_LOCAL, "workspace"):
        _LOCAL.workspace = Workspace()
    workspace: Workspace = _LOCAL.workspace
    return workspace


def release() -> None:
    """Give the calling thread's buffers back, after an unusually large image for instance."""
    if hasattr(_LOCAL, "workspace"):
        del _LOCAL.workspace
