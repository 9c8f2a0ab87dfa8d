"""The output folder of a job: begin or resume it, know which shards are proven done, commit the whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.append import SourceChange, compare, start_append, take_back_append
from pipeline.claim import Say, claimed, release, taken_over
from pipeline.heartbeat import NAME as HEARTBEAT
from pipeline.patience import patiently
from pipeline.plan import ExtendedPlan, ListedPlan, Plan, PlanFile, RetryPlan, ShardTask, make_plan, tasks
from pipeline.proofs import committed_records, proven_records, written_records
from pipeline.sources.base import Source
from proposals.dataset import layout
from proposals.dataset.assemble import (
    PLAN_GROUP,
    PLAN_SCHEMA,
    assemble,
    plan_groups,
    read_identity,
    regrouped,
    write_plan,
)
from proposals.dataset.clusters import remove_stale_clusters
from proposals.dataset.files import (
    copy_atomically,
    file_sha256,
    make_folder,
    names_in,
    publish,
    remove_leftovers,
    remove_tree,
    temporary_beside,
)
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    CommitRecord,
    Manifest,
    library_versions,
    read_manifest,
    refuse_newer,
    require_listable,
    write_model,
)
from proposals.errors import AlignDetError
from proposals.paths import is_there
from proposals.recipe import Recipe

# All that may differ between a dataset and the job that adds images to it.
_GROWS = ("source.images:", "source.fingerprint:")
# Kinds of sources whose images are files of their own, so that one may be repaired without the others.
_OF_FILES = ("folder", "list", "coco")


@dataclass(frozen=True)
class Workspace:
    """A job's output folder, opened by `begin`.

    done: commit records of finished shards by name. finished: the manifest, when the dataset was complete already.
    relieved: shards of ``done`` whose record on disk still has rejected images that are tried again in ``retried``.
    plan_file: where ``plan`` is on disk, below ``out``. base: how many shards the dataset had at the beginning.
    """

    out: Path
    plan: Plan
    identity: JobIdentity
    done: dict[str, CommitRecord]
    finished: Manifest | None = None
    relieved: tuple[str, ...] = ()
    retried: tuple[str, ...] = ()
    plan_file: str = layout.PLAN
    base: int = 0

    @property
    def pending(self) -> "Pending":
        """Tasks still to do."""
        return Pending(self.plan, frozenset(self.done) if self.finished is None else None)


@dataclass(frozen=True)
class Pending:
    """The tasks of ``plan`` but those named ``done`` (None: none), read from the plan while they are iterated."""

    plan: Plan
    done: frozenset[str] | None

    def __len__(self) -> int:
        return 0 if self.done is None else self.plan.shards - len(self.done)

    def __iter__(self) -> Iterator[ShardTask]:
        if self.done is not None:
            yield from (task for task in tasks(self.plan) if task.name not in self.done)


def begin(out: Path, plan: ListedPlan, identity: JobIdentity, say: Say = lambda _: None) -> Workspace:
    """Start a job in ``out``, resume the one in it, add new images to a finished one, or find it complete.

    In a finished dataset ``plan`` tells which images there are now: added ones get shards of their own behind the
    old ones, which stay as they are. Raises AlignDetError when the folder belongs to another job, listing the
    differences, when images were removed or changed, when the folder holds other files, or when another run works
    in it. ``say`` is told why this waits to find that out.
    """
    finished = _finished(out, plan, identity)
    if finished is not None:
        release(out)
        return finished
    if not (is_there(out / layout.MANIFEST) or is_there(out / layout.PLAN)):
        require_listable(plan.shards, plan.images, identity.images_per_shard)
        _require_empty(out)
    return _opened(out, say, lambda: _open(out, plan, identity, say))


def _opened(out: Path, say: Say, opening: Callable[[], Workspace]) -> Workspace:
    """What ``opening`` gives, while ``out`` is this run's own; it stays so unless nothing is left to do."""
    with claimed(out, say):
        workspace = opening()
    if workspace.finished is not None:
        release(out)
    return workspace


def _finished(out: Path, plan: ListedPlan, identity: JobIdentity) -> Workspace | None:
    """A complete dataset, into which nothing is written."""
    if not is_there(out / layout.MANIFEST) or is_there(out / layout.APPEND):
        return None
    manifest = read_manifest(out)
    theirs = JobIdentity.of(manifest)
    identity = identity.as_told_by(theirs)
    if identity.diff(theirs, versions=False):
        return None
    return Workspace(out, plan, identity, {}, manifest)


def _open(out: Path, plan: ListedPlan, identity: JobIdentity, say: Say) -> Workspace:
    if is_there(out / layout.MANIFEST):
        manifest = read_manifest(out)
        refuse_newer(out / layout.MANIFEST, manifest.format_version, "adding images")
        return _reopen(out, plan, identity, manifest, say)
    if is_there(out / layout.PLAN):
        begun, theirs = _begun(out, plan, identity, say)
        remove_leftovers(out, HEARTBEAT)
        remove_leftovers(out / layout.SHARDS)
        make_folder(out / layout.SHARDS)
        return _with_proofs(out, begun, theirs, {})
    _create(out, plan, identity)
    make_folder(out / layout.SHARDS)
    return _with_proofs(out, plan, identity, {})


def _begun(out: Path, plan: ListedPlan, identity: JobIdentity, say: Say) -> tuple[Plan, JobIdentity]:
    """The plan of the unfinished job in ``out`` and what it is of: of what was listed when it began.

    Images that came since wait for the next run. Raises AlignDetError when it is another job, or when images are gone
    or were changed.
    """
    theirs = read_identity(out / layout.PLAN)
    identity = identity.as_told_by(theirs)
    differences = identity.diff(theirs)
    if not differences:
        _require_same_shards(out, plan.parts())
        return plan, identity
    begun = PlanFile(out / layout.PLAN)
    grew = -(-begun.images // theirs.images_per_shard) < begun.shards
    change = compare(begun, plan, ())
    refusals = change.refusals()
    if grew or refusals or not all(line.startswith(_GROWS) for line in differences):
        _refuse_difference(out, [*differences, *refusals])
    _tell_of_waiting(change, say)
    return begun, theirs


def _tell_of_waiting(change: SourceChange, say: Say) -> None:
    if count := int(change.added.sum()):
        say(
            f"{count} images came since this job began: those it began with are finished now, and the same command "
            "adds the others then"
        )


def _are_same(some: Iterator[pa.Table], others: Iterator[pa.Table]) -> bool:
    groups = zip_longest(regrouped(some, PLAN_GROUP), regrouped(others, PLAN_GROUP))
    return all(one is not None and other is not None and one.equals(other) for one, other in groups)


def _require_same_shards(out: Path, parts: Iterator[pa.Table]) -> None:
    # A dataset that grew, or whose rejected images were tried again, has the same images in other shards.
    if not _are_same((part.cast(PLAN_SCHEMA) for part in plan_groups(out / layout.PLAN)), parts):
        raise AlignDetError(
            f"{out} is a dataset that images were added to, or tried again in, and its {layout.MANIFEST} is missing. "
            f"Run: aligndet verify {out} --repair. Where that cannot, mine into a new folder."
        )


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
    remove_leftovers(out / layout.SHARDS)
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


def _finish_commit(out: Path, manifest: Manifest) -> None:
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
    return _opened(out, say, lambda: _open_retry(out, recipe, source, listed))


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
    _refuse_difference(out, here.as_told_by(theirs).diff(theirs))
    _finish_commit(out, manifest)
    if is_there(out / layout.APPEND) and not _holds_retry(out, manifest):
        raise AlignDetError(
            f"images are being added to {out}. Finish that first: the same command without --retry-rejected"
        )
    return _retry(out, manifest, listed)


def abandon(workspace: Workspace, records: dict[str, CommitRecord]) -> Manifest:
    """Take back a retry in which no image passed: the dataset is as it was before."""
    for name in workspace.retried:
        if records[name].shard.images:
            raise ValueError(f"shard {name} of the retry has images")
        layout.record_path(workspace.out, name).unlink()
    (workspace.out / layout.APPEND).unlink()
    release(workspace.out)
    return read_manifest(workspace.out)


def _retry(out: Path, manifest: Manifest, listed: ListedPlan | None) -> Workspace:
    identity, records = JobIdentity.of(manifest), committed_records(out, manifest)
    keys = _rejected_keys(records)
    if _holds_retry(out, manifest) and file_sha256(out / layout.PLAN) != manifest.plan.sha256:
        plan: Plan = PlanFile(out / layout.APPEND)  # a run was stopped while it committed
    else:
        committed = PlanFile(out / layout.PLAN)
        if not keys:
            return Workspace(out, committed, identity, {}, manifest)
        plan = RetryPlan(committed, len(manifest.shards), keys, manifest.images_per_shard, listed)
        start_append(out, plan, identity, manifest)
    relieved = _relieved(records, plan, keys)
    opened = _with_proofs(out, plan, identity, {**records, **relieved})
    new = range(len(manifest.shards), plan.shards)
    return replace(
        _behind(opened, manifest), relieved=tuple(relieved), retried=tuple(map(layout.shard_name, new))
    )


def _rejected_keys(records: dict[str, CommitRecord]) -> frozenset[str]:
    return frozenset(row.key for record in records.values() for row in record.rejected)


def _behind(opened: Workspace, manifest: Manifest) -> Workspace:
    """``opened``, which adds shards to the dataset of ``manifest``."""
    return replace(opened, plan_file=layout.APPEND, base=len(manifest.shards))


def _relieved(records: dict[str, CommitRecord], plan: Plan, keys: frozenset[str]) -> dict[str, CommitRecord]:
    """The records that name images which ``plan`` has moved into other shards, without them."""
    homes: dict[str, str] = {}
    for part in plan.parts():
        moved = part.filter(pc.is_in(part.column("key"), pa.array(sorted(keys), pa.string())))
        shards = (layout.shard_name(number) for number in moved.column("shard").to_pylist())
        homes.update(zip(moved.column("key").to_pylist(), shards, strict=True))
    changed: dict[str, CommitRecord] = {}
    for name, record in records.items():
        left = tuple(row for row in record.rejected if homes.get(row.key) == name)
        if len(left) < len(record.rejected):
            changed[name] = record.model_copy(update={"rejected": left})
    return changed


def _holds_retry(out: Path, manifest: Manifest) -> bool:
    # An append has another source than the dataset it extends.
    path = out / layout.APPEND
    return is_there(path) and read_identity(path) == JobIdentity.of(manifest)


def _reopen(out: Path, plan: ListedPlan, identity: JobIdentity, manifest: Manifest, say: Say) -> Workspace:
    _finish_commit(out, manifest)
    theirs = JobIdentity.of(manifest)
    identity = identity.as_told_by(theirs)
    if _holds_retry(out, manifest):
        # Images that were repaired have other sizes, and so the source another fingerprint.
        rejected = _rejected_keys(committed_records(out, manifest))
        change = compare(PlanFile(out / layout.APPEND), plan, rejected)
        differences = [line for line in identity.diff(theirs) if not line.startswith(_GROWS)]
        _refuse_difference(out, [*differences, *change.refusals()])
        _tell_of_waiting(change, say)
        return _retry(out, manifest, plan)
    if not identity.diff(theirs, versions=False):
        take_back_append(out, manifest, say)
        return Workspace(out, plan, identity, {}, manifest)
    # A run that was stopped while it committed may have left the longer plan: its first part is the committed one.
    committed = PlanFile(out / layout.PLAN, len(manifest.shards))
    records = committed_records(out, manifest)
    change = compare(committed, plan, _rejected_keys(records))
    refusals, grows = change.refusals(), bool(change.added.any())
    if refusals or not all(line.startswith(_GROWS) for line in identity.diff(theirs, versions=grows)):
        _refuse_difference(out, [*identity.diff(theirs), *refusals])
    if (advice := change.advice()) is not None:
        say(advice)
    if not grows:
        # The same images: in another order, or of the sizes at which they were tried again.
        take_back_append(out, manifest, say)
        return Workspace(out, plan, identity, {}, manifest)
    begun = _begun_append(out, plan, identity, manifest, _rejected_keys(records), say)
    if begun is not None:
        return _behind(_with_proofs(out, *begun, records), manifest)
    extended = ExtendedPlan(committed, plan, change.added, manifest.images_per_shard)
    start_append(out, extended, identity, manifest)
    return _behind(_with_proofs(out, extended, identity, records), manifest)


def _begun_append(
    out: Path,
    listed: ListedPlan,
    identity: JobIdentity,
    manifest: Manifest,
    rejected: frozenset[str],
    say: Say,
) -> tuple[Plan, JobIdentity] | None:
    """The plan of an append that was stopped, and what it is of: it is finished first, whatever came since.

    None where there is none, or where it is of another job or of images that are gone or were changed: what it has
    mined cannot stay then.
    """
    path = out / layout.APPEND
    if not is_there(path):
        return None
    theirs, begun = read_identity(path), PlanFile(path)
    told = identity.as_told_by(theirs)
    shards = len(manifest.shards)
    change = compare(begun, listed, rejected)
    if (
        change.refusals()
        or not all(line.startswith(_GROWS) for line in told.diff(theirs))
        or not _are_same(PlanFile(path, shards).parts(), PlanFile(out / layout.PLAN, shards).parts())
    ):
        return None
    remove_leftovers(out / layout.SHARDS)
    _tell_of_waiting(change, say)
    return begun, theirs


def _with_proofs(
    out: Path, plan: Plan, identity: JobIdentity, committed: dict[str, CommitRecord]
) -> Workspace:
    names = (layout.shard_name(number) for number in range(plan.shards))
    left = (name for name in names if name not in committed)
    return Workspace(out, plan, identity, {**committed, **proven_records(out, left, identity.fingerprint())})


def _require_empty(out: Path) -> None:
    """Make the folder of a new dataset, unless it holds something."""
    _require_outside_datasets(out)
    with _as_users_error(out):
        if out.exists() and (
            not out.is_dir() or any(not _is_unfinished_plan(name) for name in names_in(out))
        ):
            raise AlignDetError(f"{out} is not empty and holds no mining job. Choose a new folder.")
        make_folder(out)


def _create(out: Path, plan: Plan, identity: JobIdentity) -> None:
    with _as_users_error(out):
        remove_leftovers(out, HEARTBEAT)
        with temporary_beside(out / layout.PLAN) as (temporary,):
            write_plan(temporary, plan.parts(), identity)
            publish(temporary, out / layout.PLAN)


@contextmanager
def _as_users_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise AlignDetError(f"{out} cannot be written: {why}. Choose another folder.") from error


def _require_outside_datasets(out: Path) -> None:
    for folder in out.parents:
        if _is_there(folder / layout.MANIFEST) or _is_there(folder / layout.PLAN):
            raise AlignDetError(
                f"{out} lies inside another dataset, {folder}, which holds nothing but its own files. Choose a folder "
                "outside of it."
            )


def _is_there(path: Path) -> bool:
    try:
        return is_there(path)
    except AlignDetError:  # of a store whose folders above ``out`` are not ours to see
        return False


def _is_unfinished_plan(name: str) -> bool:
    # All that a run leaves which died before its plan was written.
    beginnings = f"{layout.PLAN}{layout.TEMPORARY_MARK}", HEARTBEAT
    return name.startswith(beginnings)


def _refuse_difference(out: Path, differences: list[str]) -> None:
    if differences:
        lines = "".join(f"\n  {line}" for line in differences)
        raise AlignDetError(
            f"{out} belongs to another job:{lines}\n"
            "Run the command that started it, with its images in place, or choose a new folder."
        )
