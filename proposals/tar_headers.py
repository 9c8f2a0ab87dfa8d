"""The members of a tar that nobody vouches for.

tarfile believes what headers say: a size below zero sends it back to a member it has read, for ever; an extended header
is as large as it says, and may be followed by another, and another.
"""

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

# Names of 4096 bytes and a file's extended attributes fit many times.
_LARGEST_HEADER = 2**14
_HEADERS_OF_A_MEMBER = 2**17
_LARGEST_FILE = 2**62
# tarfile looks for numbers with a pattern whose time is the square of their length.
_ENDLESS_NUMBER = re.compile(rb"\d{1000}")


class TarHeaders:
    """Iterate over it for the members of the plain tar in ``stream``, in order; ``end`` is then where the last ends.

    Raises tarfile.TarError or OSError where the tar is cut or unsound; what comes before was given.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = _Watched(stream)
        self.end = 0

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as archive:  # type: ignore[call-overload]
                yield from self._members(archive)
        except (ArithmeticError, EOFError, MemoryError, RecursionError, TypeError, ValueError) as error:
            raise tarfile.ReadError(f"a header that cannot be meant ({type(error).__name__})") from error

    def _members(self, archive: Any) -> Iterator[tarfile.TarInfo]:
        while True:
            self._stream.left = _HEADERS_OF_A_MEMBER
            member = archive.next()
            if member is None:
                return
            archive.members.clear()  # or tarfile would hold every one
            if not 0 <= member.size < _LARGEST_FILE or archive.offset <= self.end:
                raise tarfile.ReadError("a member that ends before it begins, or nowhere")
            self.end = archive.offset
            yield member


class _Watched:
    """What tarfile reads from: of headers only, and only so much of them between one member and the next."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.left = stream, _HEADERS_OF_A_MEMBER
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        self.left -= max(size, 1)
        if not 0 <= size <= _LARGEST_HEADER or self.left < 0:
            raise tarfile.ReadError("headers without end")
        data = self._stream.read(size)
        if size > tarfile.BLOCKSIZE and _ENDLESS_NUMBER.search(data):
            raise tarfile.ReadError("a header with a number of a thousand digits")
        return data
