"""Listing what a tar or a table holds: what is broken in it is its own fault, what fails on the way to it is not."""

import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.sources.base import SourceEntry
from proposals.errors import AlignDetError
from proposals.image_rows import open_binary
from proposals.paths import scheme_of

# Of a parser that was given every byte it asked for. Arrow raises OSError for damaged pages.
_BROKEN = (tarfile.TarError, pa.ArrowException, OSError, ValueError, KeyError, EOFError)


def listed(
    file: str, location: str, entries: Callable[[BinaryIO], Iterator[SourceEntry]], mapped: bool = True
) -> Iterator[SourceEntry]:
    """``entries`` of the open container at ``location``; when it breaks off, one more, ``file``, which is rejected.

    mapped: see `open_binary`. Raises AlignDetError when the container's place fails: what it still holds would be lost
    for ever.
    """
    failures: list[Exception] = []
    try:
        with _opened(location, failures, mapped) as stream:
            yield from entries(stream)
    except AlignDetError:
        raise
    except Exception as error:  # every backend has exceptions of its own, and libraries wrap them in theirs
        cause = failures[0] if failures else error
        if not isinstance(cause, FileNotFoundError if failures else _BROKEN):
            raise AlignDetError(
                f"{location} cannot be listed: {type(cause).__name__}: {cause}. Nothing was mined. "
                "Try again when it can be read, or leave it out."
            ) from cause
        yield SourceEntry(file, -1)


def _opened(location: str, failures: list[Exception], mapped: bool) -> BinaryIO:
    try:
        stream = open_binary(location, mapped)
    except ValueError:
        raise  # an empty file, which cannot be mapped into memory
    except Exception as error:
        failures.append(error)
        raise
    if mapped and scheme_of(location) is None:
        return stream  # nothing that could be noted: where a page cannot be read the system ends the process
    return cast(BinaryIO, _Noting(stream, failures))


class _Noting:
    """A stream that remembers why it could not be read, whatever the library that reads from it makes of that."""

    def __init__(self, stream: BinaryIO, failures: list[Exception]) -> None:
        self._stream, self._failures = stream, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "_Noting":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except Exception as error:
            self._failures.append(error)
            raise
