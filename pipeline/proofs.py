"""Commit records of an output folder: which shards are proven done, and which of those that should be there are."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from proposals.dataset import layout
from proposals.dataset.files import sizes_in
from proposals.dataset.manifest import CommitRecord, Manifest, committed_record, read_record
from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import is_remote

_READERS = 32  # of an object store, where each read waits for the network

Shard = TypeVar("Shard")
Answer = TypeVar("Answer")


def proven_records(out: Path, names: Iterable[str], job: str) -> dict[str, CommitRecord]:
    """Of the shards called ``names`` those done: their record is of ``job``, their files have the sizes it tells."""
    sizes = sizes_in(out / layout.SHARDS)
    found = written_records(out, [name for name in names if f"{name}.json" in sizes])
    return {name: record for name, record in found.items() if record and _is_proof(record, name, job, sizes)}


def written_records(out: Path, names: list[str]) -> dict[str, CommitRecord | None]:
    """The records of ``names``; None where there is none that is sound. Raises UnansweredError: nobody knows then."""
    records = _read_all(out, names, lambda name: _record_or_none(layout.record_path(out, name)))
    return dict(zip(names, records, strict=True))


def committed_records(out: Path, manifest: Manifest) -> dict[str, CommitRecord]:
    """Those of all shards of ``manifest``, by name. Raises AlignDetError when one is not the one that was committed."""
    records = _read_all(out, list(manifest.shards), lambda shard: committed_record(out, shard))
    return {record.shard.name: record for record in records}


def _read_all(out: Path, shards: list[Shard], read: Callable[[Shard], Answer]) -> list[Answer]:
    if not is_remote(out):
        return [read(shard) for shard in shards]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, shards))


def _record_or_none(path: Path) -> CommitRecord | None:
    try:
        return read_record(path)
    except UnansweredError:
        raise
    except AlignDetError:
        return None


def _is_proof(record: CommitRecord, name: str, job: str, sizes: dict[str, int]) -> bool:
    intact = all(sizes.get(entry.path.rsplit("/", 1)[-1]) == entry.bytes for entry in record.shard.files)
    return record.job == job and record.shard.name == name and intact
