"""The rows of one shard's table: keys, sizes and boxes that a reader may rely on."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from proposals.dataset import layout
from proposals.dataset.manifest import CommitRecord, Manifest, ShardEntry
from proposals.dataset.tables import box_offsets, flat_ranks
from proposals.filter_spec import STATUSES

_Flags = npt.NDArray[np.bool_]


def row_faults(table: pa.Table, entry: ShardEntry, max_pixels: int) -> Iterator[str]:
    """What is wrong with the rows of a table from `read_shard`, naming the first row and counting the others."""
    keys, uris = table.column("key").to_pylist(), table.column("uri").to_pylist()
    wrong_key = np.array([key != layout.key_of(uri) for key, uri in zip(keys, uris, strict=True)])
    width, height, turn = (table.column(name).to_numpy() for name in ("width", "height", "orientation"))
    pixels = width.astype(np.int64) * height
    impossible = (width < 1) | (height < 1) | (pixels > max_pixels) | (turn < 1) | (turn > 8)
    yield from _first(wrong_key, keys, "the key is not that of its uri")
    yield from _first(impossible, keys, "width, height or orientation is impossible")
    yield from _list_faults(table, keys)
    statuses = Counter(table.column("status").to_pylist())
    if not set(statuses) <= set(STATUSES) or statuses != entry.statuses:
        yield f"statuses are {dict(statuses)}, dataset.json says {entry.statuses}"


def plan_faults(table: pa.Table | None, planned: pa.Table, record: CommitRecord) -> Iterator[str]:
    """How rows and rejected images differ from the shard's plan, in which each must be exactly once, in order."""
    rows = [] if table is None else list(_names(table))
    rejected = [(row.key, row.uri) for row in record.rejected]
    here = Counter([*rows, *rejected])
    plan = list(_names(planned))
    for name, count in here.items():
        if count > 1:
            yield f"{name[1]!r} is there {count} times among rows and rejected images"
    for key, uri in here.keys() - set(plan):
        yield f"{uri!r} ({key}) is not in the shard's plan"
    for _, uri in set(plan) - here.keys():
        yield f"{uri!r} is planned but neither a row nor rejected"
    gone = set(rejected)
    if here == Counter(plan) and rows != [name for name in plan if name not in gone]:
        yield "its rows are not in the order of the plan"


def record_faults(record: CommitRecord, entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    """How a shard's commit record differs from its entry in the manifest."""
    if record.shard != entry:
        yield f"tells of shard {record.shard.name} or of other files than dataset.json does for {entry.name}"
    if record.format_version.split(".")[0] != manifest.format_version.split(".")[0]:
        yield f"has format version {record.format_version}, dataset.json {manifest.format_version}"


def _list_faults(table: pa.Table, keys: list[str]) -> Iterator[str]:
    offsets = box_offsets(table)
    ranks, counts = flat_ranks(table), np.diff(offsets)
    owner = np.repeat(np.arange(len(keys)), counts)
    yield from _first(counts < 1, keys, "it has no box")
    falls = (ranks[1:] < ranks[:-1]) & (owner[1:] == owner[:-1])
    yield from _first(_rows(owner[1:], falls, len(keys)), keys, "ranks do not ascend")


def _rows(owner: npt.NDArray[np.int64], wrong: _Flags, count: int) -> _Flags:
    flags = np.zeros(count, dtype=np.bool_)
    flags[owner[wrong]] = True
    return flags


def _first(wrong: _Flags, keys: list[str], what: str) -> Iterator[str]:
    places = np.flatnonzero(wrong)
    if len(places):
        more = f" (and {len(places) - 1} more rows)" if len(places) > 1 else ""
        yield f"row {places[0]}, {keys[places[0]]}: {what}{more}"


def _names(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table.column("key").to_pylist(), table.column("uri").to_pylist(), strict=True)
