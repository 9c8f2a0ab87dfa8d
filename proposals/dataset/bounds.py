"""Limits of format version 1, checked before memory is taken for what a file declares."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proposals.dataset.files import open_any
from proposals.errors import AlignDetError
from proposals.paths import is_remote

MAX_MANIFEST_BYTES = 256 * 2**20
MAX_RECORD_BYTES = 64 * 2**20
MAX_FOOTER_BYTES = 64 * 2**20
MAX_IMAGES = 2**28
MAX_SHARD_IMAGES = 1_000_000
MAX_SHARD_PROPOSALS = 2**31 - 1  # Arrow's list offsets are int32

# What the smallest possible image and box take in a tar: two headers and two blocks; ``[0,0,1,1]`` and a rank.
MIN_IMAGE_BYTES = 4 * 512
MIN_BOX_BYTES = 11

# Of a shard without a tar: each row has two hashes in its Parquet table; boxes of equal images compress to little.
MIN_ROW_BYTES = 32
MAX_BOXES_PER_BYTE = 64

# What one row and one box may take in memory, all columns together, with room for other writers' encodings.
_ROW_BYTES = 2**15
_BOX_BYTES = 64
_TABLE_BYTES = 2**20


# Git LFS keeps its own below.
MAX_POINTER_BYTES = 1024
POINTER_HINT = "it is a pointer of Git LFS, not the file itself: run `git lfs pull` where it was cloned"


def has_room(size: int, images: int, boxes: int) -> bool:
    """Whether a Parquet table of ``size`` bytes without a tar may declare so many images and boxes."""
    return images * MIN_ROW_BYTES <= size and boxes <= size * MAX_BOXES_PER_BYTE


def read_bounded(path: Path, limit: int) -> bytes:
    """All of ``path``; raises AlignDetError when it is larger than ``limit`` bytes or cannot be read."""
    try:
        with open_any(path, limit) as stream:
            size = stream.seek(0, 2)
            if size > limit:
                raise AlignDetError(
                    f"{path} has {size} bytes, the format allows {limit}: it is damaged, or of another kind."
                )
            stream.seek(0)
            return stream.read(size)
    except OSError as error:
        raise AlignDetError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_parquet(path: Path, rows: int, boxes: int = 0, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in ``path``, only ``columns`` of it (None: all).

    The footer must declare ``rows`` rows and no more memory than they and ``boxes`` boxes can need. Raises
    AlignDetError when it does not, or when the file cannot be read.
    """
    with _plain_columns(path) as (file, names):
        limit = _check_footer(path, file.metadata, rows, boxes)
        return _spelled_out(path, file.read(columns=list(columns or names), use_threads=False), limit)


def read_row_groups(path: Path, rows: int, row_bytes: int, group_bytes: int) -> Iterator[pa.Table]:
    """The tables of ``path``'s row groups, one after the other: for files that are larger than memory.

    rows: the most that a group may have. row_bytes: what a row may take, on average; group_bytes: all of them. Raises
    AlignDetError when a group declares more, or the file cannot be read.
    """
    with _plain_columns(path) as (file, names):
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            if group.num_rows > rows:
                raise AlignDetError(f"{path} has {group.num_rows} rows in one group: it is damaged.")
            limit = _TABLE_BYTES + min(row_bytes * group.num_rows, group_bytes)
            _check_declared(path, [group], group.num_rows, limit)
            yield _spelled_out(path, file.read_row_group(number, columns=names, use_threads=False), limit)


@contextmanager
def _plain_columns(path: Path) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """``path``, opened, and its columns of numbers and plain texts; raises AlignDetError for what pyarrow raises."""
    try:
        # ParquetFile, not read_table: the latter would bring in the whole pyarrow.dataset machinery per shard.
        with opened(path) as source:
            with pq.ParquetFile(source) as file:
                texts, names = _texts(file), _flat(file)
            # Texts stay in their dictionaries, where one of any length can stand for a million rows.
            with pq.ParquetFile(source, read_dictionary=texts) as file:
                yield file, names
    except (OSError, ValueError, pa.ArrowException) as error:
        why = (
            why_unreadable(error)
            or f"{getattr(error, 'strerror', None) or error}. The dataset is damaged or was moved."
        )
        raise AlignDetError(f"{path} cannot be read: {why}") from error


def why_unreadable(error: Exception) -> str | None:
    """What the system has against reading a file that may well be sound, and what to do; None where that is not it."""
    if not isinstance(error, OSError) or error.errno in (None, errno.ENOENT):
        return None
    return f"{error.strerror}. See to its permissions, or to the disk or mount that it is on, and try again."


@contextmanager
def opened(path: Path) -> Iterator[Path | BinaryIO]:
    """What pyarrow reads the Parquet file ``path`` from: the path itself, or a stream of the object at a URL.

    Raises AlignDetError when it declares a footer larger than itself or the limit.
    """
    with open_any(path) as stream:
        _check_footer_length(path, stream)
        if is_remote(path):
            stream.seek(0)
            yield stream
            return
    yield path


def _check_footer_length(path: Path, stream: BinaryIO) -> None:
    size = stream.seek(0, 2)
    stream.seek(0)
    if size <= MAX_POINTER_BYTES and is_pointer(stream.read(MAX_POINTER_BYTES)):
        raise AlignDetError(f"{path} is no table: {POINTER_HINT}.")
    stream.seek(max(0, size - 8))
    length = int.from_bytes(stream.read(4), "little")
    if size < 12 or length > min(MAX_FOOTER_BYTES, size - 12):
        raise AlignDetError(f"{path} declares a footer of {length} bytes: the dataset is damaged.")


def is_pointer(content: bytes) -> bool:
    """Whether a file of this ``content`` is what Git LFS leaves in the place of one that it has not fetched."""
    return content.startswith(b"version https://git-lfs.github.com/spec/")


def _texts(file: pq.ParquetFile) -> list[str]:
    return [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]


def _flat(file: pq.ParquetFile) -> list[str]:
    """The columns that hold numbers or plain texts; of others a newer version may have, the size is not known."""
    schema = file.metadata.schema
    columns = [schema.column(place) for place in range(len(schema))]
    other = {column.path.split(".")[0] for column in columns if column.physical_type == "BYTE_ARRAY"}
    return [name for name in file.schema_arrow.names if name not in other - set(_texts(file))]


def _spelled_out(path: Path, table: pa.Table, limit: int) -> pa.Table:
    """``table`` with texts instead of dictionaries of them; raises AlignDetError when they take more than ``limit``."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(place)
            needed = sum(
                pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
                for chunk in column.chunks
            )
            if needed > limit:
                raise AlignDetError(
                    f"{path} has {needed} bytes of {field.name}, more than the {limit} allowed."
                )
            text = pa.field(field.name, pa.string(), field.nullable, field.metadata)
            table = table.set_column(place, text, column.cast(pa.string()))
    return table


def _check_footer(path: Path, metadata: pq.FileMetaData, rows: int, boxes: int) -> int:
    """The bytes that so many rows and boxes may take in memory, after what the footer declares was compared with it."""
    if metadata.num_rows != rows:
        raise AlignDetError(
            f"{path} has {metadata.num_rows} rows, dataset.json says {rows}: the dataset is damaged."
        )
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    limit = _TABLE_BYTES + _ROW_BYTES * rows + _BOX_BYTES * boxes
    _check_declared(path, groups, rows, limit)
    return limit


def _check_declared(path: Path, groups: Sequence[pq.RowGroupMetaData], rows: int, limit: int) -> None:
    declared = sum(max(group.total_byte_size, _unpacked(group)) for group in groups)
    if declared > limit:
        raise AlignDetError(
            f"{path} declares {declared} bytes for {rows} rows, more than the {limit} allowed: it is damaged."
        )


def _unpacked(group: pq.RowGroupMetaData) -> int:
    # A run of equal numbers takes no room in a file.
    columns = [group.column(place) for place in range(group.num_columns)]
    return sum(8 * column.num_values for column in columns)
