"""Try the rejected images of a finished dataset again."""

from dataclasses import replace
from pathlib import Path

from pipeline.append import start_append
from pipeline.claim import Say, release
from pipeline.commit import finish_commit
from pipeline.plan import ListedPlan, Plan, PlanFile, RetryPlan, make_plan
from pipeline.proofs import committed_records
from pipeline.sources.base import Source
from pipeline.workspace import Workspace, behind, opened, refuse_difference, with_proofs
from proposals.dataset import layout
from proposals.dataset.assemble import read_identity
from proposals.dataset.files import file_sha256
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import CommitRecord, Manifest, library_versions, read_manifest, refuse_newer
from proposals.errors import AlignDetError
from proposals.paths import is_there
from proposals.recipe import Recipe

# Kinds of sources whose images are files of their own, so that one may be repaired without the others.
_OF_FILES = ("folder", "list", "coco")


def begin_retry(out: Path, recipe: Recipe, source: Source, say: Say = lambda _: None) -> Workspace:
    """Try the rejected images of the dataset in ``out`` again, in shards of their own behind the others.

    source: where they are now; the plan takes their sizes from it. Tars and tables of old shards stay as they are;
    once the new shards are done, `commit` takes the images out of the old commit records. Without rejected images the
    dataset is ``finished``. Raises AlignDetError when it is not complete, of another recipe, source or library
    versions, or when another run works in it, see `begin`, and what listing the source raises.
    """
    manifest = read_manifest(out)
    refuse_newer(out / layout.MANIFEST, manifest.format_version, "retrying")
    listed = make_plan(source.entries(), manifest.images_per_shard) if source.kind in _OF_FILES else None
    return opened(out, say, lambda: _open_retry(out, recipe, source, listed))


def _open_retry(out: Path, recipe: Recipe, source: Source, listed: ListedPlan | None) -> Workspace:
    manifest = read_manifest(out)
    theirs = JobIdentity.of(manifest)
    told = theirs.source.model_copy(update={"kind": source.kind, "column": source.images.column})
    here = theirs.model_copy(
        update={
            "recipe": recipe,
            "source": told,
            "versions": library_versions(),
            "images": None if theirs.images is None else source.images,
        }
    )
    refuse_difference(out, here.as_told_by(theirs).diff(theirs))
    finish_commit(out, manifest)
    if is_there(out / layout.APPEND) and not holds_retry(out, manifest):
        raise AlignDetError(
            f"images are being added to {out}. Finish that first: the same command without --retry-rejected"
        )
    return open_retry(out, manifest, listed)


def open_retry(out: Path, manifest: Manifest, listed: ListedPlan | None) -> Workspace:
    """Start a retry in ``out``, or go on with the one in it. listed: a plan of what is there now, for the sizes."""
    identity, records = JobIdentity.of(manifest), committed_records(out, manifest)
    keys = rejected_keys(records)
    if holds_retry(out, manifest) and file_sha256(out / layout.PLAN) != manifest.plan.sha256:
        plan: Plan = PlanFile(out / layout.APPEND)  # a run was stopped while it committed
    else:
        committed = PlanFile(out / layout.PLAN)
        if not keys:
            return Workspace(out, committed, identity, {}, manifest)
        plan = RetryPlan(committed, len(manifest.shards), keys, manifest.images_per_shard, listed)
        start_append(out, plan, identity, manifest)
    relieved = _relieved(records)
    workspace = with_proofs(out, plan, identity, {**records, **relieved})
    new = range(len(manifest.shards), plan.shards)
    return replace(
        behind(workspace, manifest), relieved=tuple(relieved), retried=tuple(map(layout.shard_name, new))
    )


def _relieved(records: dict[str, CommitRecord]) -> dict[str, CommitRecord]:
    """The records that name rejected images, all of which a retry moves into other shards, without them."""
    return {
        name: record.model_copy(update={"rejected": ()})
        for name, record in records.items()
        if record.rejected
    }


def rejected_keys(records: dict[str, CommitRecord]) -> frozenset[str]:
    """The keys of all images that are rejected in ``records``."""
    return frozenset(row.key for record in records.values() for row in record.rejected)


def holds_retry(out: Path, manifest: Manifest) -> bool:
    """Whether what is being added to the dataset in ``out`` are its own rejected images."""
    # An append has another source than the dataset it extends.
    path = out / layout.APPEND
    return is_there(path) and read_identity(path) == JobIdentity.of(manifest)


def abandon(workspace: Workspace, records: dict[str, CommitRecord]) -> Manifest:
    """Take back a retry in which no image passed: the dataset is as it was before."""
    passed = [name for name in workspace.retried if records[name].shard.images]
    if passed:
        raise ValueError(f"shards {', '.join(passed)} of the retry have images")
    for name in workspace.retried:
        layout.record_path(workspace.out, name).unlink()
    (workspace.out / layout.APPEND).unlink()
    release(workspace.out)
    return read_manifest(workspace.out)
