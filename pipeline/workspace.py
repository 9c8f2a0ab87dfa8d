"""The output folder of a job: begin or resume it, know which shards are proven done, commit the whole."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.plan import ShardTask, tasks
from proposals.dataset import layout
from proposals.dataset.assemble import assemble, plan_bytes, read_identity
from proposals.dataset.files import remove_leftovers, write_atomically
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import CommitRecord, Manifest, read_manifest, read_record
from proposals.errors import AlignDetError


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
        _refuse_difference(out, identity.diff(JobIdentity.of(manifest), versions=False))
        return Workspace(out, plan, identity, {}, (), manifest)
    if (out / layout.PLAN).is_file():
        _refuse_difference(out, identity.diff(read_identity(out / layout.PLAN)))
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
    remove_leftovers(workspace.out / layout.SHARDS)
    ordered = [records[task.name] for task in tasks(workspace.plan)]
    return assemble(workspace.out, workspace.identity, ordered)


def _create(out: Path, plan: pa.Table, identity: JobIdentity) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlignDetError(f"{out} is not empty and holds no mining job. Choose a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / layout.PLAN, plan_bytes(plan, identity))
    except OSError as error:
        raise AlignDetError(f"{out} cannot be written: {error.strerror}. Choose another folder.") from error


def _refuse_difference(out: Path, differences: list[str]) -> None:
    if differences:
        lines = "".join(f"\n  {line}" for line in differences)
        raise AlignDetError(
            f"{out} belongs to another job:{lines}\nRun the command that started it, or choose a new folder."
        )


def _proof(out: Path, name: str, job: str) -> CommitRecord | None:
    path = layout.record_path(out, name)
    try:
        record = read_record(path)
    except AlignDetError:
        return None
    intact = record.shard.name == name and all(
        _size(out / entry.path) == entry.bytes for entry in record.shard.files
    )
    return record if record.job == job and intact else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
