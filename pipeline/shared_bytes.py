"""Bytes in memory that a process shares with its child: no pipe they would have to squeeze through."""

import os
import tempfile

_KEPT_BYTES = 16 * 2**20


class SharedBytes:
    """A file without a name, in memory where the system can (Linux); gone with the processes that hold it.

    descriptor: to hand to a child, which reads with `read_shared`.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("aligndet"), "w+b", buffering=0)
        else:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this object
        self.descriptor = self._file.fileno()
        self._size = 0

    def put(self, data: bytes) -> None:
        """Replace the content by ``data``."""
        if max(self._size, len(data)) > _KEPT_BYTES:
            os.ftruncate(self.descriptor, 0)  # a large image does not hold its memory for ever
        self._size = len(data)
        left = memoryview(data)
        while left:
            left = left[os.pwrite(self.descriptor, left, len(data) - len(left)) :]


def read_shared(descriptor: int, size: int) -> bytes:
    """The first ``size`` bytes of what `SharedBytes.put` left at ``descriptor``."""
    data = os.pread(descriptor, size, 0)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), len(data))):
        data += more
    return data
