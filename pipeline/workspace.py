"""The output folder of a job: begin or resume it, know which shards are proven done, commit the whole."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipeline.plan import ShardTask, tasks
from proposals.dataset import layout
from proposals.dataset.files import remove_leftovers, write_atomically
from proposals.dataset.manifest import (
    CommitRecord,
    FileEntry,
    Manifest,
    SourceInfo,
    Totals,
    read_manifest,
    read_model,
    write_model,
)
from proposals.errors import AlignDetError
from proposals.filters import STATUSES
from proposals.recipe import Recipe

_IDENTITY_KEY = b"aligndet.job"


class JobIdentity(BaseModel):
    """Everything that decides the bytes of a dataset: two jobs with the same identity write the same files."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    source: SourceInfo
    images_per_shard: int
    versions: dict[str, str]

    def fingerprint(self) -> str:
        """sha256, in hex, of the canonical JSON."""
        canonical = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def diff(self, other: "JobIdentity", *, versions: bool = True) -> list[str]:
        """What differs, one line per field: ``recipe.max_side: 512 there, 640 here``, there being ``other``."""
        here, there = _flat(self.model_dump()), _flat(other.model_dump())
        names = [name for name in sorted({*here, *there}) if versions or not name.startswith("versions.")]
        return [
            f"{name}: {there.get(name)} there, {here.get(name)} here"
            for name in names
            if here.get(name) != there.get(name)
        ]


@dataclass(frozen=True)
class Workspace:
    """A job's output folder, opened by `begin`.

    done: commit records of finished shards by name. pending: tasks still to do. finished: the manifest, when the
    dataset was complete already.
    """

    out: Path
    plan: pa.Table
    identity: JobIdentity
    done: dict[str, CommitRecord]
    pending: tuple[ShardTask, ...]
    finished: Manifest | None = None


def begin(out: Path, plan: pa.Table, identity: JobIdentity) -> Workspace:
    """Start a job in ``out``, resume the one in it, or find it complete (then nothing is written).

    Raises AlignDetError when the folder belongs to another job, listing the differences, or holds other files.
    """
    if (out / layout.MANIFEST).is_file():
        manifest = read_manifest(out)
        theirs = JobIdentity(**{name: getattr(manifest, name) for name in JobIdentity.model_fields})
        _refuse_difference(out, identity.diff(theirs, versions=False))
        return Workspace(out, plan, identity, {}, (), manifest)
    if (out / layout.PLAN).is_file():
        _refuse_difference(out, identity.diff(_read_identity(out / layout.PLAN)))
        remove_leftovers(out)
        remove_leftovers(out / layout.SHARDS)
    else:
        _create(out, plan, identity)
    (out / layout.SHARDS).mkdir(exist_ok=True)
    job = identity.fingerprint()
    every = tuple(tasks(plan))
    done = {task.name: record for task in every if (record := _proof(out, task.name, job)) is not None}
    return Workspace(out, plan, identity, done, tuple(task for task in every if task.name not in done))


def commit(workspace: Workspace, records: dict[str, CommitRecord]) -> Manifest:
    """Write rejected.parquet, then dataset.json: the folder becomes a dataset.

    records: the commit record of every shard of the plan, by name.
    """
    out, identity = workspace.out, workspace.identity
    ordered = [records[task.name] for task in tasks(workspace.plan)]
    write_atomically(out / layout.REJECTED, _rejected_parquet(ordered))
    remove_leftovers(out / layout.SHARDS)
    manifest = Manifest(
        recipe=identity.recipe,
        recipe_fingerprint=identity.recipe.fingerprint(),
        source=identity.source,
        images_per_shard=identity.images_per_shard,
        versions=identity.versions,
        totals=_totals(ordered),
        plan=FileEntry.of(out, out / layout.PLAN),
        rejected=FileEntry.of(out, out / layout.REJECTED),
        shards=tuple(record.shard for record in ordered),
    )
    write_model(out / layout.MANIFEST, manifest)
    return manifest


def _create(out: Path, plan: pa.Table, identity: JobIdentity) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlignDetError(f"{out} is not empty and holds no mining job. Choose a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        metadata = {_IDENTITY_KEY: identity.model_dump_json().encode()}
        write_atomically(out / layout.PLAN, _parquet(plan.replace_schema_metadata(metadata)))
    except OSError as error:
        raise AlignDetError(f"{out} cannot be written: {error.strerror}. Choose another folder.") from error


def _read_identity(plan_path: Path) -> JobIdentity:
    try:
        metadata = pq.read_schema(plan_path).metadata or {}
        return JobIdentity.model_validate_json(metadata[_IDENTITY_KEY])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise AlignDetError(
            f"{plan_path} is damaged, the job cannot be resumed. Choose a new folder."
        ) from error


def _refuse_difference(out: Path, differences: list[str]) -> None:
    if differences:
        lines = "".join(f"\n  {line}" for line in differences)
        raise AlignDetError(
            f"{out} belongs to another job:{lines}\nRun the command that started it, or choose a new folder."
        )


def _proof(out: Path, name: str, job: str) -> CommitRecord | None:
    path = layout.record_path(out, name)
    try:
        record = read_model(path, CommitRecord)
    except AlignDetError:
        return None
    files = [entry for entry in (record.shard.tar, record.shard.parquet) if entry is not None]
    intact = all(_size(out / entry.path) == entry.bytes for entry in files)
    return record if record.job == job and intact else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _totals(records: list[CommitRecord]) -> Totals:
    shards = [record.shard for record in records]
    found: Counter[str] = Counter()
    for shard in shards:
        found.update(shard.statuses)
    files = [entry for shard in shards for entry in (shard.tar, shard.parquet) if entry is not None]
    return Totals(
        images=sum(shard.images for shard in shards),
        proposals=sum(shard.proposals for shard in shards),
        rejected=sum(len(record.rejected) for record in records),
        bytes=sum(entry.bytes for entry in files),
        statuses={status: found[status] for status in STATUSES if found[status]},
    )


def _rejected_parquet(records: list[CommitRecord]) -> bytes:
    rejected = [rejection for record in records for rejection in record.rejected]
    names = ("key", "uri", "stage", "reason", "detail", "traceback_hash")
    columns = {name: pa.array([getattr(row, name) for row in rejected], pa.string()) for name in names}
    return _parquet(pa.table(columns))


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", version="2.6")
    return buffer.getvalue()


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat.update(
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        )
    return flat
