"""The Parquet tables of a dataset: their columns, and reading one shard's without trusting it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from proposals.boxes import Boxes
from proposals.dataset import layout
from proposals.dataset.bounds import MAX_POINTER_BYTES, has_room, is_pointer, read_parquet
from proposals.dataset.files import read_range, size_of
from proposals.dataset.manifest import ShardEntry
from proposals.errors import AlignDetError
from proposals.fetch import MAX_IMAGE_BYTES
from proposals.paths import is_remote

BOX = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("orientation", pa.int8(), nullable=False),
        pa.field("boxes", pa.list_(pa.field("element", BOX, nullable=False)), nullable=False),
        pa.field("rank", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("tar_offset", pa.int64(), nullable=False),
        pa.field("tar_size", pa.int64(), nullable=False),
    ]
)

# Of a shard without a tar: the images are elsewhere, found by uri.
REFERENCE_SCHEMA = SCHEMA.set(
    SCHEMA.get_field_index("tar_offset"), pa.field("tar_offset", pa.int64(), nullable=True)
)

# At a URL, what so many boxes take in memory is worth a request for the tar's size.
_MANY_BOXES = 1_000_000


def write_table(path: Path, table: pa.Table, boxes: int) -> None:
    """Write the table of a shard: compressed, unless equal images then take less room than any images may."""
    pq.write_table(table, path, compression="zstd", version="2.6")
    if not has_room(path.stat().st_size, table.num_rows, boxes):
        pq.write_table(table, path, compression="none", use_dictionary=False, version="2.6")


def read_shard(root: Path, entry: ShardEntry) -> pa.Table:
    """The table of a shard that holds images, every column in one chunk.

    Raises AlignDetError when its size, columns, list lengths or tar offsets do not fit ``entry``, and for a box that is
    empty or leaves its image.
    """
    path = layout.parquet_path(root, entry.name)
    table = read_columns(root, entry).combine_chunks()
    wanted = SCHEMA if entry.tar is not None else REFERENCE_SCHEMA
    try:
        table.validate(full=True)
        fault = _schema_fault(table.schema, wanted) or _value_fault(table, entry)
    except pa.ArrowInvalid as error:
        fault = str(error)
    if fault:
        raise AlignDetError(f"{path}: {fault}. The dataset is damaged: see `aligndet verify {root}`.")
    return table


def read_columns(root: Path, entry: ShardEntry, columns: Sequence[str] | None = None) -> pa.Table:
    """Only ``columns`` (None: all) of a shard's table, which has the declared size; raises AlignDetError otherwise."""
    if (fault := room_fault(root, entry)) is not None:
        raise AlignDetError(f"{fault}. The dataset is damaged: see `aligndet verify {root}`.")
    return read_parquet(layout.parquet_path(root, entry.name), entry.images, entry.proposals, columns)


def room_fault(root: Path, entry: ShardEntry) -> str | None:
    """Why a shard's files cannot hold the boxes that ``entry`` declares, None when they can.

    It is the tar that has room for them. Where that was not fetched, the table must have it, as without a tar.
    """
    if entry.tar is None or (is_remote(root) and entry.proposals <= _MANY_BOXES):
        return None
    tar, parquet = layout.tar_path(root, entry.name), layout.parquet_path(root, entry.name)
    size = size_of(tar)
    if size is not None and not _is_unfetched(tar, size):
        same = size == entry.tar.bytes
        return None if same else f"{tar} has {size} bytes, dataset.json says {entry.tar.bytes}"
    room = size_of(parquet)
    if room is None or has_room(room, entry.images, entry.proposals):
        return None
    return f"{parquet} of {room} bytes is too small for {entry.proposals} boxes"


def _is_unfetched(path: Path, size: int) -> bool:
    return size <= MAX_POINTER_BYTES and is_pointer(read_range(path, 0, size))


def box_offsets(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """[rows + 1] int64: where each image's boxes start in the flat boxes of a table from `read_shard`."""
    return numbers(table.column("rank").chunk(0).offsets).astype(np.int64)


def flat_boxes(table: pa.Table) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """[proposals, 4] float32: all boxes of a table from `read_shard`, image after image; not to be written to."""
    flat = numbers(table.column("boxes").chunk(0).values.values)
    return np.asarray(flat, dtype=np.float32).reshape(-1, 4)


def flat_ranks(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """[proposals] float32: all ranks of a table from `read_shard`; not to be written to."""
    return np.asarray(numbers(table.column("rank").chunk(0).values), dtype=np.float32)


def is_sound(boxes: Boxes, ranks: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """[N]: whether each box is finite, not empty and begins inside of an image, and its rank finite."""
    # A NaN is in none of these orders.
    solid = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return solid & np.isfinite(boxes[:, 2:]).all(axis=1) & np.isfinite(ranks)


def numbers(array: pa.Array) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """The numbers of an array without nulls, not copied; unlike its ``to_numpy`` this does not import pandas."""
    return np.asarray(np.from_dlpack(array))


def _schema_fault(schema: pa.Schema, wanted: pa.Schema) -> str | None:
    for field in wanted:
        place = schema.get_field_index(field.name)
        if place < 0:
            return f"it has no column {field.name}"
        if not schema.field(place).equals(field):
            return f"column {field.name} is {schema.field(place).type}, the format says {field.type}"
    return None


def _box_faults(table: pa.Table) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
    """What no box may be, and which of the flat boxes are: a view would cut nothing out of the image, or elsewhere."""
    boxes, counts = flat_boxes(table), np.diff(box_offsets(table))
    yield ~(np.isfinite(boxes).all(axis=1) & np.isfinite(flat_ranks(table))), "a box or rank is not finite"
    yield np.logical_or.reduce(boxes[:, :2] >= boxes[:, 2:], axis=1), "a box is empty (x1 >= x2 or y1 >= y2)"
    sizes = np.stack([numbers(table.column(name).chunk(0)) for name in ("width", "height")], axis=1)
    beyond = boxes[:, 2:] > np.repeat(sizes, counts, axis=0)
    yield np.logical_or.reduce((boxes[:, :2] < 0) | beyond, axis=1), "a box leaves the image"


def _value_fault(table: pa.Table, entry: ShardEntry) -> str | None:
    if table.num_rows != entry.images:
        return f"it has {table.num_rows} rows, dataset.json says {entry.images}"
    boxes, ranks = table.column("boxes").chunk(0), table.column("rank").chunk(0)
    if not boxes.offsets.equals(ranks.offsets):
        return "boxes and rank have lists of different lengths"
    if not len(boxes.values) == len(ranks.values) == entry.proposals:
        return f"it has {len(boxes.values)} boxes, dataset.json says {entry.proposals}"
    for wrong, what in _box_faults(table):
        if wrong.any():
            row = int(np.searchsorted(box_offsets(table), np.flatnonzero(wrong)[0], side="right")) - 1
            return f"row {row}, {table.column('key')[row]}: {what}"
    if entry.tar is None:
        known = table.column("tar_offset").null_count < table.num_rows
        return "it has offsets into a tar, and the shard has no tar" if known else None
    offset, size = (numbers(table.column(name).chunk(0)) for name in ("tar_offset", "tar_size"))
    limit = entry.tar.bytes
    outside = (offset < 512) | (size < 1) | (size > min(limit, MAX_IMAGE_BYTES)) | (offset > limit - size)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        return f"the image of row {row} would be at bytes {offset[row]} + {size[row]} of a tar of {limit}"
    return None
