"""Files at URLs, read as files: in pieces, each of which is asked for again where a server did not answer.

A file of a web server that does not give parts of it is read from its beginning to its end.
"""

import errno
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from proposals.errors import AlignDetError, DeniedError, UnansweredError
from proposals.fetch import (
    AS_IT_IS,
    PART,
    Read,
    SourceUnavailableError,
    asked_again,
    read_part,
    verdict,
    web_part,
    web_stream,
)
from proposals.paths import is_web

_PIECE = 4 * 2**20
_CHUNK = 2**20
# Of a copy as large as this the rest is on disk, and none is larger than the next.
_HELD = 64 * 2**20
_LARGEST_COPY = 2 * 2**30


def info_of(path: Any) -> dict[str, Any]:
    """What the store of the remote ``path`` tells of it: name, type, and size, None where a web server does not say.

    Raises FileNotFoundError when it is not there, DeniedError when it is refused, UnansweredError when nobody answers.
    """
    return answered(path, lambda: dict(path.fs.info(path.path)))


def answered(path: Path, ask: Callable[[], Read]) -> Read:
    """What ``ask`` returns, which asks the store of ``path``, up to three times; raises as `info_of` does."""
    try:
        return asked_again(lambda: _judged(path, ask))
    except SourceUnavailableError as error:
        raise UnansweredError(
            f"{_unreached(path, error.__cause__ or error)} If they are, try again later: this says nothing of the data."
        ) from error


def pieces_of(path: Path, *, again: bool = True) -> Iterator[bytes]:
    """The content of the remote ``path``, from its beginning to its end; raises as `info_of` does.

    again: ask up to three times; for who has a rule of its own, ask once, and raise SourceUnavailableError.
    """
    ask = answered if again else _judged
    remote: Any = path
    size = ask(path, lambda: remote.fs.info(remote.path))["size"]
    with closing(_Pieces(path, size)) as pieces:
        yield from _in_order(pieces, ask)


@contextmanager
def open_remote(path: Path, most: int | None = None) -> Iterator[BinaryIO]:
    """The remote ``path``, to be read at any place. It and reading raise as `info_of` does.

    What its server gives as a whole only, and in more than one piece, is copied first, unless it is larger than the
    ``most`` bytes that are of any use.
    """
    with closing(_Pieces(path, info_of(path)["size"])) as pieces:
        if _is_copied(pieces, most):
            with tempfile.SpooledTemporaryFile(_HELD) as copy:
                _copy(pieces, copy)
                yield cast(BinaryIO, copy)
        else:
            with io.BufferedReader(_Seekable(pieces)) as file:
                yield file


def _is_copied(pieces: "_Pieces", most: int | None) -> bool:
    if pieces.size is None:
        return True
    useful = most is None or pieces.size <= most
    return useful and pieces.size > _PIECE and not answered(pieces.path, pieces.has_parts)


def _copy(pieces: "_Pieces", copy: IO[bytes]) -> None:
    _require_bounded(pieces, pieces.size or 0)
    for piece in _in_order(pieces, answered):
        try:
            copy.write(piece)
        except OSError as error:
            raise UnansweredError(
                f"{pieces.path} comes as a whole only, and {tempfile.gettempdir()} has no room for a copy: "
                f"{error.strerror}. Free some there, or set TMPDIR to another folder."
            ) from error
        _require_bounded(pieces, copy.tell())
    copy.seek(0)


def _in_order(pieces: "_Pieces", ask: Callable[[Path, Callable[[], bytes]], bytes]) -> Iterator[bytes]:
    place = 0
    while place != pieces.size and (piece := ask(pieces.path, partial(pieces.read, place))):
        yield piece
        place += len(piece)


def _require_bounded(pieces: "_Pieces", size: int) -> None:
    if size > _LARGEST_COPY:
        raise UnansweredError(
            f"{pieces.path} cannot be read: this server cannot serve parts of files, and the whole is too large to "
            "copy. Download it first."
        )


class _Pieces:
    """Parts of the remote ``path``, of ``size`` bytes (None: unknown). Raises what its backend does."""

    def __init__(self, path: Path, size: int | None) -> None:
        remote: Any = path
        self.path, self.size = path, size
        self._store, self._name = remote.fs, remote.path
        self._web = is_web(path)
        self._parts = size is not None
        self._body: Any = None
        self._place = 0

    def has_parts(self) -> bool:
        """Whether any part can be read without what is before it."""
        if self._web and self._parts:
            with self._answer(0, 1) as body:
                self._parts = body.r.status == PART
        return self._parts

    def read(self, start: int) -> bytes:
        """The piece from ``start`` on; from a server that gives no parts quickly only in order."""
        wanted = _PIECE if self.size is None else min(_PIECE, self.size - start)
        data = self._read_web(start, wanted) if self._web else self._read_stored(start, wanted)
        if self.size is not None and len(data) < wanted:
            raise SourceUnavailableError(f"{self.path} ended at byte {start + len(data)} of {self.size}")
        return data

    def close(self) -> None:
        """End what a web server still sends."""
        if self._body is not None:
            self._body.close()
            self._body = None

    def _read_stored(self, start: int, wanted: int) -> bytes:
        return read_part(self._store, self._name, str(self.path), start, wanted)

    def _read_web(self, start: int, wanted: int) -> bytes:
        try:
            if self._body is None or self._place > start:
                self._open(start, wanted)
            while self._place < start and self._take(min(_CHUNK, start - self._place)):
                pass
            data = self._take(wanted)
        except BaseException:
            self.close()
            raise
        if self._parts:
            self.close()
        return data

    def _open(self, start: int, wanted: int) -> None:
        self.close()
        if self._parts:
            self._body, self._place = self._answer(start, wanted), start
            if self._body.r.status == PART:
                return
            self._parts, self._place = False, 0
            if start == 0 and wanted == self.size:
                return
            self.close()
        self._body, self._place = self._all_of_it(), 0

    def _take(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (piece := self._body.read(min(_CHUNK, size - len(data)))):
            data += piece
        self._place += len(data)
        return bytes(data)

    def _answer(self, start: int, size: int) -> Any:
        return web_part(self._store, self._name, start, size)

    def _all_of_it(self) -> Any:
        import aiohttp

        # Without the limit for a whole answer, which a large file takes longer than.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        return web_stream(self._store, self._name, headers=AS_IT_IS, timeout=timeout)


class _Seekable(io.RawIOBase):
    """``pieces`` of a known size as a file that holds the last of them."""

    def __init__(self, pieces: _Pieces) -> None:
        super().__init__()
        self._pieces, self._size = pieces, pieces.size or 0
        self._place = self._start = 0
        self._piece = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, (0, self._place, self._size)[whence] + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase's, up to the end of one piece; raises as `info_of` does."""
        view = memoryview(buffer)
        if self._place >= self._size:
            return 0
        if not self._start <= self._place < self._start + len(self._piece):
            start = self._place - self._place % _PIECE
            self._piece = answered(self._pieces.path, lambda: self._pieces.read(start))
            self._start = start
        begin = self._place - self._start
        found = self._piece[begin : begin + len(view)]
        view[: len(found)] = found
        self._place += len(found)
        return len(found)


def _judged(path: Path, ask: Callable[[], Read]) -> Read:
    try:
        return ask()
    except (AlignDetError, SourceUnavailableError):
        raise
    except Exception as error:  # every backend has exceptions of its own
        # Of a web server's every failure fsspec says that a file is not found, and the server's own answer is inside.
        inner = error.__cause__ if isinstance(error, FileNotFoundError) else None
        if is_web(path) and isinstance(inner, Exception):
            error = inner
        if isinstance(error, FileNotFoundError):
            raise error
        raise _judgement(path, error) from error


def _judgement(path: Path, error: Exception) -> Exception:
    if isinstance(error, PermissionError):
        return DeniedError(_unreached(path, error))
    found = verdict(error, str(path))
    if isinstance(found, SourceUnavailableError):
        return found
    if getattr(found, "reason", None) == "missing":
        return FileNotFoundError(errno.ENOENT, "there is nothing at its URL", str(path))
    return DeniedError(_unreached(path, error))


def _unreached(path: Path, error: BaseException) -> str:
    status = getattr(error, "status", None)
    why = f"its server answers {status}" if status else str(error) or type(error).__name__
    return f"{path} cannot be reached: {why}. Are address, name and credentials right?"
