"""Reads that may hang, as on a network mount whose server is gone: each costs its time limit, not the worker."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from proposals.fetch import SourceUnavailableError
from proposals.images import ImageRejected
from proposals.paths import is_web

Read = Callable[[str], bytes]


@contextmanager
def timed_reads(read: Read, seconds: float) -> Iterator[Read]:
    """``read``, done by a thread. When it takes longer than ``seconds``, it raises what it does for a silent source:

    SourceUnavailableError, which is tried again, or for a web server, one of a list's thousands, ImageRejected.
    Nothing can end a thread that hangs in the kernel, so it is left to hang and the next call starts another.
    """
    readers: list[_Reader] = []

    def timed(uri: str) -> bytes:
        if not readers:
            readers.append(_Reader(read))
        try:
            return readers[-1].read(uri, seconds)
        except Empty:
            readers.pop().end()  # should it ever come back
            if is_web(uri):
                raise ImageRejected("read", "unreachable", "its server did not answer in time") from None
            raise SourceUnavailableError(f"{uri} was not read within {seconds:g} s") from None

    try:
        yield timed
    finally:
        for reader in readers:
            reader.end()


class _Reader:
    def __init__(self, read: Read) -> None:
        self._asked: SimpleQueue[str | None] = SimpleQueue()
        self._read: SimpleQueue[bytes | BaseException] = SimpleQueue()
        threading.Thread(target=self._serve, args=(read,), name="reader", daemon=True).start()

    def read(self, uri: str, seconds: float) -> bytes:
        self._asked.put(uri)
        answer = self._read.get(timeout=seconds)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        self._asked.put(None)

    def _serve(self, read: Read) -> None:
        while (uri := self._asked.get()) is not None:
            try:
                self._read.put(read(uri))
            except BaseException as error:
                self._read.put(error)
