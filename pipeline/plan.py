"""The plan: which image goes into which shard. A pure function of the source's list."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipeline.sources import SourceEntry
from proposals.dataset.layout import key_of, shard_name
from proposals.errors import AlignDetError


@dataclass(frozen=True)
class ShardTask:
    """The images of one shard, in order."""

    name: str
    keys: tuple[str, ...]
    uris: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.uris)


def make_plan(listed: Iterable[SourceEntry], images_per_shard: int) -> pa.Table:
    """The plan table, one row per image in order: shard int32, key, uri, size int64 (bytes, -1 when not a file).

    Consecutive images share a shard. Raises AlignDetError when two images have one key.
    """
    entries = list(listed)
    uris = [entry.uri for entry in entries]
    keys = [key_of(uri) for uri in uris]
    if len(set(keys)) != len(keys):
        twice = next(uri for i, uri in enumerate(uris) if keys[i] in keys[:i])
        raise AlignDetError(f"{twice!r} has the same key as another image. Rename it.")
    shards = np.arange(len(entries), dtype=np.int32) // images_per_shard
    sizes = pa.array([entry.size for entry in entries], pa.int64())
    return pa.table({"shard": shards, "key": pa.array(keys), "uri": pa.array(uris), "size": sizes})


def tasks(plan: pa.Table) -> Iterator[ShardTask]:
    """The shard tasks of a plan, in shard order."""
    shards = plan.column("shard").to_numpy()
    bounds = np.flatnonzero(np.diff(shards, prepend=-1, append=-1)) if len(shards) else np.zeros(0, int)
    for first, last in pairwise(bounds.tolist()):
        part = plan.slice(first, last - first)
        yield ShardTask(
            shard_name(int(shards[first])),
            tuple(part.column("key").to_pylist()),
            tuple(part.column("uri").to_pylist()),
        )
