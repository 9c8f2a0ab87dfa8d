"""Begin a job in an output folder, or go on with the one in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline.claim import Say, release
from pipeline.plan import ListedPlan, Plan, PlanFile, are_same
from pipeline.reopen import reopen
from pipeline.source_change import GROWS, compare, tell_of_waiting
from pipeline.workspace import Workspace, opened, refuse_difference, with_proofs
from proposals.dataset import layout
from proposals.dataset.assemble import PLAN_SCHEMA, plan_groups, read_identity, write_plan
from proposals.dataset.files import make_folder, names_in, publish, remove_leftovers, temporary_beside
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import read_manifest, refuse_newer, require_listable
from proposals.errors import AlignDetError
from proposals.paths import is_there


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
    return opened(out, say, lambda: _open(out, plan, identity, say))


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
        return reopen(out, plan, identity, manifest, say)
    if is_there(out / layout.PLAN):
        begun, theirs = _begun(out, plan, identity, say)
        remove_leftovers(out, layout.HEARTBEAT)
        remove_leftovers(out / layout.SHARDS)
        make_folder(out / layout.SHARDS)
        return with_proofs(out, begun, theirs, {})
    _create(out, plan, identity)
    make_folder(out / layout.SHARDS)
    return with_proofs(out, plan, identity, {})


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
    if grew or refusals or not all(line.startswith(GROWS) for line in differences):
        refuse_difference(out, [*differences, *refusals])
    tell_of_waiting(change, say)
    return begun, theirs


def _require_same_shards(out: Path, parts: Iterator[pa.Table]) -> None:
    # A dataset that grew, or whose rejected images were tried again, has the same images in other shards.
    if not are_same((part.cast(PLAN_SCHEMA) for part in plan_groups(out / layout.PLAN)), parts):
        raise AlignDetError(
            f"{out} is a dataset that images were added to, or tried again in, and its {layout.MANIFEST} is missing. "
            f"Run: aligndet verify {out} --repair. Where that cannot, mine into a new folder."
        )


def _require_empty(out: Path) -> None:
    """Make the folder of a new dataset, unless it holds something."""
    _require_outside_datasets(out)
    with _as_users_error(out):
        # All that a run leaves which died before its plan was written.
        if out.exists() and (not out.is_dir() or not all(map(layout.is_temporary, names_in(out)))):
            raise AlignDetError(f"{out} is not empty and holds no mining job. Choose a new folder.")
        make_folder(out)


def _create(out: Path, plan: Plan, identity: JobIdentity) -> None:
    with _as_users_error(out):
        remove_leftovers(out, layout.HEARTBEAT)
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
