"""The plan: which image goes into which shard. A pure function of the source's list, held on disk and not in memory."""

import hashlib
import tempfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sources.base import SourceEntry
from proposals.dataset.assemble import PLAN_GROUP, PLAN_SCHEMA, plan_groups, regrouped
from proposals.dataset.layout import key_of, shard_name
from proposals.dataset.manifest import SourceInfo
from proposals.errors import AlignDetError

_GROUP = 65_536
_Places = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]
_LISTED = pa.schema([pa.field("uri", pa.string()), pa.field("size", pa.int64())])


@dataclass(frozen=True)
class ShardTask:
    """The images of one shard, in order. sizes: bytes as they were listed, -1 where unknown; empty: all unknown."""

    name: str
    keys: tuple[str, ...]
    uris: tuple[str, ...]
    sizes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.uris)


class Plan(ABC):
    """images, shards: how many. The rows are read from disk each time they are asked for."""

    images: int
    shards: int

    @abstractmethod
    def parts(self) -> Iterator[pa.Table]:
        """All rows in order (PLAN_SCHEMA), some at a time."""


class ListedPlan(Plan):
    """Of what a source lists now, in a temporary file until this object is gone. What it lists again counts once.

    hashes: [images] uint64, of the uris: the first 16 hex digits of their sha256, which end a key. sizes: [images]
    int64, bytes, -1 for what is no file or not known. again: how many entries were left out, as they name an image
    that came before. repeated: the first such name, None without.
    """

    repeated: str | None = None

    def __init__(self, entries: Iterable[SourceEntry], images_per_shard: int) -> None:
        self._per_shard, self.again = images_per_shard, 0
        self._take(entries)
        again = self._listed_again()
        if again:
            self.again = len(again)
            self._take(entry for place, entry in enumerate(self._entries()) if place not in again)
        self.shards = -(-self.images // images_per_shard)

    def _take(self, entries: Iterable[SourceEntry]) -> None:
        """Write ``entries`` into a file; they may come out of the one that was written before."""
        file = tempfile.TemporaryFile(prefix="aligndet-plan-")  # noqa: SIM115 - lives as long as this
        digest, hashes, sizes = hashlib.sha256(), array("Q"), array("q")
        with pq.ParquetWriter(file, _LISTED, compression="zstd") as writer:
            rest = iter(entries)
            while group := list(islice(rest, _GROUP)):
                digest.update("".join(f"{entry.uri}\0{entry.size}\n" for entry in group).encode())
                hashes.extend(_hash(entry.uri) for entry in group)
                sizes.extend(entry.size for entry in group)
                columns = [[entry.uri for entry in group], [entry.size for entry in group]]
                writer.write_table(pa.table(columns, schema=_LISTED), row_group_size=_GROUP)
        self._file, self.hashes, self.sizes = file, np.asarray(hashes), np.asarray(sizes)
        self._fingerprint, self.images = digest.hexdigest(), len(hashes)

    def source(self, kind: str, column: str | None = None) -> SourceInfo:
        """What a dataset remembers of the source, as `pipeline.sources.describe` says it. column: of tables' images."""
        return SourceInfo(kind=kind, images=self.images, fingerprint=self._fingerprint, column=column)

    def finder(self) -> Callable[[npt.NDArray[np.uint64]], tuple[_Places, _Flags]]:
        """A function from hashes of uris to (their places in the list, whether they are there at all)."""
        now, order = self.hashes, np.argsort(self.hashes, kind="stable")

        def find(hashes: npt.NDArray[np.uint64]) -> tuple[_Places, _Flags]:
            if not len(now):
                return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.bool_)
            places = order[np.minimum(np.searchsorted(now, hashes, sorter=order), len(now) - 1)]
            return places, now[places] == hashes

        return find

    def parts(self) -> Iterator[pa.Table]:
        """See `Plan`."""
        first = 0
        for listed in self._listed():
            shards = np.arange(first, first + len(listed)) // self._per_shard
            uris = listed.column("uri").to_pylist()
            keys = pa.array([key_of(uri) for uri in uris], pa.string())
            columns = [pa.array(shards, pa.int32()), keys, *listed.columns]
            yield pa.table(columns, schema=PLAN_SCHEMA)
            first += len(listed)

    def _listed(self) -> Iterator[pa.Table]:
        # Read ahead, Arrow's threads hold on to buffers of the Python file, and abort a process that ends meanwhile.
        with pq.ParquetFile(self._file, pre_buffer=False) as file:
            for group in range(file.metadata.num_row_groups):
                yield file.read_row_group(group, use_threads=False)

    def _entries(self) -> Iterator[SourceEntry]:
        for listed in self._listed():
            yield from map(SourceEntry, *(column.to_pylist() for column in listed.columns))

    def _listed_again(self) -> set[int]:
        """Places of the entries whose uri came before. Raises AlignDetError when two uris have one key."""
        order = np.sort(self.hashes)
        twice = set(order[1:][order[1:] == order[:-1]].tolist())
        del order
        if not twice:
            return set()
        again, first = set[int](), dict[str, str]()
        for place, entry in enumerate(self._entries()):
            if int(self.hashes[place]) not in twice:
                continue
            key = key_of(entry.uri)
            if key not in first:
                first[key] = entry.uri
            elif first[key] == entry.uri:
                again.add(place)
                self.repeated = self.repeated or entry.uri
            else:
                raise AlignDetError(f"{entry.uri!r} has the same key as {first[key]!r}. Rename one of them.")
        return again


class PlanFile(Plan):
    """Of a plan.parquet; with ``shards``, only of that many from the first on."""

    def __init__(self, path: Path, shards: int | None = None) -> None:
        self._path, self._limit = path, shards
        counts = [(part.num_rows, part.column("shard")[-1].as_py()) for part in self.parts() if part.num_rows]
        self.images = sum(rows for rows, _ in counts)
        self.shards = counts[-1][1] + 1 if counts else 0

    def parts(self) -> Iterator[pa.Table]:
        """See `Plan`. Raises AlignDetError when the file is damaged."""
        for part in plan_groups(self._path):
            if self._limit is not None:
                part = part.filter(pc.less(part.column("shard"), self._limit))
            yield part


class ExtendedPlan(Plan):
    """A committed plan and, in shards of their own behind it, the images of a longer list that are new.

    added: [listed.images] bool, which these are.
    """

    def __init__(
        self, committed: Plan, listed: Plan, added: npt.NDArray[np.bool_], images_per_shard: int
    ) -> None:
        self._committed, self._listed, self._added, self._per_shard = (
            committed,
            listed,
            added,
            images_per_shard,
        )
        new = int(added.sum())
        self.images = committed.images + new
        self.shards = committed.shards - (-new // images_per_shard)

    def parts(self) -> Iterator[pa.Table]:
        """See `Plan`."""
        yield from self._committed.parts()
        row = new = 0
        for part in self._listed.parts():
            chosen = part.filter(pa.array(self._added[row : row + len(part)]))
            numbers = self._committed.shards + np.arange(new, new + len(chosen)) // self._per_shard
            yield chosen.set_column(0, PLAN_SCHEMA.field("shard"), pa.array(numbers, pa.int32()))
            row, new = row + len(part), new + len(chosen)


class RetryPlan(Plan):
    """A committed plan whose images ``keys`` have moved into shards of their own behind the others.

    listed: what the source lists now, where their sizes are taken from; None, or an image it lacks: from the plan.
    """

    def __init__(
        self,
        committed: Plan,
        shards: int,
        keys: frozenset[str],
        images_per_shard: int,
        listed: ListedPlan | None = None,
    ) -> None:
        self._committed, self._first, self._per_shard = committed, shards, images_per_shard
        self._listed = listed
        self._keys = pa.array(sorted(keys), pa.string())
        self.images = committed.images
        self.shards = shards - (-len(keys) // images_per_shard)

    def parts(self) -> Iterator[pa.Table]:
        """See `Plan`."""
        for part in self._committed.parts():
            yield part.filter(pc.invert(pc.is_in(part.column("key"), self._keys)))
        moved, resized = 0, self._resizer()
        for part in self._committed.parts():
            chosen = resized(part.filter(pc.is_in(part.column("key"), self._keys)))
            numbers = self._first + np.arange(moved, moved + len(chosen)) // self._per_shard
            yield chosen.set_column(0, PLAN_SCHEMA.field("shard"), pa.array(numbers, pa.int32()))
            moved += len(chosen)

    def _resizer(self) -> Callable[[pa.Table], pa.Table]:
        listed = self._listed
        if listed is None:
            return lambda rows: rows
        find = listed.finder()

        def resized(rows: pa.Table) -> pa.Table:
            places, there = find(key_hashes(rows))
            # Unknown of those that are gone.
            sizes = np.full(len(rows), -1, dtype=np.int64)
            sizes[there] = listed.sizes[places[there]]
            return rows.set_column(
                rows.schema.get_field_index("size"), PLAN_SCHEMA.field("size"), pa.array(sizes, pa.int64())
            )

        return resized


def make_plan(entries: Iterable[SourceEntry], images_per_shard: int) -> ListedPlan:
    """The plan of a source's list: consecutive images share a shard.

    Raises AlignDetError when two images of different names have one key, and whatever ``entries`` raises.
    """
    return ListedPlan(entries, images_per_shard)


def tasks(plan: Plan) -> Iterator[ShardTask]:
    """The shard tasks of a plan, in shard order, one part of the plan in memory."""
    held: pa.Table | None = None
    for part in plan.parts():
        rows = part if held is None else pa.concat_tables([held, part])
        shards = rows.column("shard").to_numpy()
        bounds = np.flatnonzero(np.diff(shards, prepend=-1, append=-1)).tolist() if len(shards) else [0]
        *whole, last = list(pairwise(bounds)) or [(0, 0)]
        yield from (_task(rows.slice(first, stop - first)) for first, stop in whole)
        held = rows.slice(*last)  # it may go on in the next part
    if held is not None and held.num_rows:
        yield _task(held)


def are_same(some: Iterator[pa.Table], others: Iterator[pa.Table]) -> bool:
    """Whether both are parts (PLAN_SCHEMA) of one plan, wherever each is cut."""
    groups = zip_longest(regrouped(some, PLAN_GROUP), regrouped(others, PLAN_GROUP))
    return all(one is not None and other is not None and one.equals(other) for one, other in groups)


def key_hashes(part: pa.Table) -> npt.NDArray[np.uint64]:
    """[rows] uint64: the hash of each uri, from the end of its key."""
    return np.array([int(key[-16:], 16) for key in part.column("key").to_pylist()], dtype=np.uint64)


def _task(rows: pa.Table) -> ShardTask:
    name = shard_name(rows.column("shard")[0].as_py())
    return ShardTask(name, *(tuple(rows.column(column).to_pylist()) for column in ("key", "uri", "size")))


def _hash(uri: str) -> int:
    return int.from_bytes(hashlib.sha256(uri.encode()).digest()[:8])
