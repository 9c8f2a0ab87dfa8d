"""Make the output folder a dataset once its shards are done, or the larger dataset."""

from pathlib import Path

from pipeline.append import remove_own_leftovers
from pipeline.claim import Say, release, taken_over
from pipeline.patience import patiently
from pipeline.proofs import written_records
from pipeline.workspace import Workspace
from proposals.dataset import layout
from proposals.dataset.assemble import assemble, read_identity
from proposals.dataset.clusters import remove_stale_clusters
from proposals.dataset.files import copy_atomically, file_sha256, remove_tree
from proposals.dataset.manifest import CommitRecord, Manifest, read_manifest, write_model
from proposals.paths import is_there


def commit(workspace: Workspace, records: dict[str, CommitRecord], say: Say = lambda _: None) -> Manifest:
    """Write rejected.parquet, then dataset.json: the folder becomes a dataset, or the larger dataset.

    records: the commit record of every shard of the plan, by name. say: is told when the store does not answer.
    Raises AlignDetError, with nothing written, when another run has changed what this one began with, or replaced one
    of its shards; and when the store does not answer for minutes.
    """
    out = workspace.out
    patiently(out, lambda: _require_ours(workspace, records), say)
    manifest = patiently(out, lambda: _assembled(workspace, records), say)
    patiently(out, lambda: _forget_overtaken(out, manifest), say)
    release(out)
    return manifest


def _assembled(workspace: Workspace, records: dict[str, CommitRecord]) -> Manifest:
    out = workspace.out
    remove_own_leftovers(out)
    ordered = [records[layout.shard_name(number)] for number in range(workspace.plan.shards)]
    if workspace.plan_file == layout.APPEND:
        copy_atomically(out / layout.APPEND, out / layout.PLAN)
    for name in workspace.relieved:
        write_model(layout.record_path(out, name), records[name])
    return assemble(out, workspace.identity, ordered)


def _forget_overtaken(out: Path, manifest: Manifest) -> None:
    """Remove what ``manifest`` has overtaken: boxes consolidated and clustered before it, then the append's plan.

    As long as that plan is there, this is to be done.
    """
    if not manifest.consolidated:
        remove_tree(out / layout.CONSOLIDATED)
    remove_stale_clusters(out, manifest)
    (out / layout.APPEND).unlink(missing_ok=True)


def finish_commit(out: Path, manifest: Manifest) -> None:
    """What a run had left to do that was stopped after it wrote ``manifest``."""
    if is_there(out / layout.APPEND) and file_sha256(out / layout.APPEND) == manifest.plan.sha256:
        _forget_overtaken(out, manifest)


def _require_ours(workspace: Workspace, records: dict[str, CommitRecord]) -> None:
    out, path = workspace.out, workspace.out / workspace.plan_file
    ours = is_there(path) and read_identity(path) == workspace.identity
    if workspace.base:
        ours = ours and len(read_manifest(out).shards) == workspace.base
    if ours:
        fresh = [name for name in records if name not in workspace.done]
        written = written_records(out, fresh)
        ours = all(
            record is not None and _told(record) == _told(records[name]) for name, record in written.items()
        )
    if not ours:
        raise taken_over(out)


def _told(record: CommitRecord) -> tuple[object, ...]:
    return record.job, record.shard, record.rejected
