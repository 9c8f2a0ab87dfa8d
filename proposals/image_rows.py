"""Images in tables: one row of a Parquet or Arrow file, read forward so that neighbours cost nothing."""

import errno
import mmap
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from proposals.errors import AlignDetError, MissingExtraError
from proposals.fetch import SourceUnavailableError, as_spelled, require_of_the_object, verdict
from proposals.images import ImageRejected
from proposals.paths import filesystem, scheme_of

_BATCH = 16
_AT_A_TIME = 2**20
_BYTES = frozenset({"binary", "large_binary", "binary_view"})
# Of a name that no file can have. Arrow's own errors, of damaged pages, have no number.
_OF_THE_NAME = (None, errno.ENAMETOOLONG, errno.ELOOP)
_TEXTS = frozenset({"string", "large_string", "string_view"})


def read_row(location: str, row: int, column: str) -> tuple[bytes | None, str | None]:
    """(bytes, path) of the image in ``row``, counted from 0: one of them at least is set in a sound file.

    Raises ImageRejected when the file cannot be read or has no such row, SourceUnavailableError when its disk or remote
    did not answer, MissingExtraError when the library for its scheme is not installed.
    """
    try:
        with _borrowed(location, column) as table:
            return table.read(row)
    except (FileNotFoundError, NotADirectoryError) as error:
        require_of_the_object(error, location)
        raise ImageRejected("read", "missing", "the table that holds it is gone") from error
    except PermissionError as error:
        require_of_the_object(error, location)
        raise ImageRejected("read", "permission_denied", "the table that holds it may not be read") from error
    except MissingExtraError:
        raise  # of this machine, and so the same for every table
    except (pa.ArrowException, ValueError, KeyError, AlignDetError) as error:
        raise _broken() from error
    except Exception as error:
        if scheme_of(location) is not None:  # every remote backend has exceptions of its own
            raise verdict(error, location) from error
        if not isinstance(error, OSError):
            raise
        if error.errno in _OF_THE_NAME:
            raise _broken() from error
        raise SourceUnavailableError(f"{location} cannot be read: {error.strerror}") from error


def _broken() -> ImageRejected:
    return ImageRejected("read", "broken_container", "the table that holds it cannot be read")


def open_binary(location: str, mapped: bool = True) -> BinaryIO:
    """A seekable stream of an allowed URL or a local file; ``mapped`` into memory, as tables want it.

    Raises ValueError when it is a pipe, a device or a folder, besides what opening raises.
    """
    if scheme_of(location) is None:
        local = Path(as_spelled(location))
        if not stat.S_ISREG(local.stat().st_mode):
            raise ValueError(f"{location} is no regular file")  # opening a pipe waits for a writer
        return _mapped(local) if mapped else local.open("rb")
    files, path = filesystem(location)
    opened: BinaryIO = files.open(path, "rb")
    return opened


def _mapped(path: Path) -> BinaryIO:
    # By its descriptor: Arrow opens no name that is not UTF-8.
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stream: BinaryIO = pa.BufferReader(memory)
    return stream


def is_parquet(location: str) -> bool:
    """Whether a table is a Parquet file, by its name in capitals or not; otherwise it is an Arrow file."""
    return location.lower().endswith(".parquet")


def can_hold_images(kind: Any) -> bool:
    """Whether cells of this Arrow type are what `image_of` reads: bytes, paths, structs of ``bytes`` and ``path``."""
    if not pa.types.is_struct(kind):
        return _is_null_or(kind, _BYTES | _TEXTS) or pa.types.is_fixed_size_binary(kind)
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    wanted = {"bytes": _BYTES, "path": _TEXTS}
    return bool(fields.keys() & wanted) and all(
        _is_null_or(fields[name], names) for name, names in wanted.items() if name in fields
    )


def _is_null_or(kind: Any, names: frozenset[str]) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_null(kind) or str(kind) in names


def image_of(value: Any) -> tuple[bytes | None, str | None]:
    """(bytes, path) of one cell: binary, a path, or the struct of both that Hugging Face's Image feature is."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (None, value) if isinstance(value, str) else (value, None)


class _Table:
    """A file at a place in it: asking for rows in ascending order reads it once."""

    def __init__(self, location: str, column: str) -> None:
        stream = open_binary(location)
        self._file = _Parquet(stream, column) if is_parquet(location) else _Arrow(stream, column)
        self._group = -1
        self._batches: Iterator[pa.Array] = iter(())
        self._first, self._batch = 0, pa.array([])

    def read(self, row: int) -> tuple[bytes | None, str | None]:
        """`read_row` of this table; cheap at, or soon after, the last row read. ValueError: no such row."""
        group = bisect_right(self._file.starts, row) - 1
        if group != self._group or row < self._first:
            self._group, self._first, self._batch = group, self._file.starts[group], pa.array([])
            self._batches = self._file.batches(group)
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = pa.array([])
            following = next(self._batches, None)
            if following is None:
                raise ValueError(f"no row {row}")
            self._batch = following
        if not can_hold_images(self._batch.type):
            raise ValueError(f"{self._batch.type} is no type of images")
        return image_of(self._batch[row - self._first].as_py())


class _Parquet:
    """starts: the first row of each row group."""

    def __init__(self, stream: BinaryIO, column: str) -> None:
        # Of a row group at a URL, which may be a whole file, what comes after the row is not read.
        buffer = 0 if isinstance(stream, pa.BufferReader) else _AT_A_TIME
        self._file, self._column = pq.ParquetFile(stream, buffer_size=buffer, pre_buffer=False), column
        metadata = self._file.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = [0, *accumulate(rows)]

    def batches(self, group: int) -> Iterator[pa.Array]:
        if group < len(self.starts) - 1:
            options = {"row_groups": [group], "columns": [self._column], "use_threads": False}
            for batch in self._file.iter_batches(batch_size=_BATCH, **options):
                yield batch.column(0)


class _Arrow:
    def __init__(self, stream: BinaryIO, column: str) -> None:
        self._stream, self._column = stream, column
        self.starts = [0]

    def batches(self, group: int) -> Iterator[pa.Array]:
        for batch in arrow_batches(self._stream):
            yield batch.column(self._column)


def arrow_batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file in either of its two forms, from its start."""
    stream.seek(0)
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if not is_file:
        yield from pa.ipc.open_stream(stream)
        return
    reader = pa.ipc.open_file(stream)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


# Tables that nobody reads now. A reader takes its own out and brings it back when all went well: one that hangs, left
# behind by `timed_reads`, shares no place in a table with the next.
_idle: OrderedDict[tuple[str, str], _Table] = OrderedDict()
_idle_lock = Lock()
_MOST_IDLE = 2


@contextmanager
def _borrowed(location: str, column: str) -> Iterator[_Table]:
    with _idle_lock:
        table = _idle.pop((location, column), None)
    table = table or _Table(location, column)
    yield table
    with _idle_lock:
        _idle[location, column] = table
        while len(_idle) > _MOST_IDLE:
            _idle.popitem(last=False)
