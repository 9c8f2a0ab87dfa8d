"""Open a finished dataset once more: add the images that came since, or find that none did."""

from pathlib import Path

from pipeline.append import remove_own_leftovers, start_append, take_back_append
from pipeline.claim import Say
from pipeline.commit import finish_commit
from pipeline.plan import ExtendedPlan, ListedPlan, Plan, PlanFile, are_same
from pipeline.proofs import committed_records
from pipeline.retry import holds_retry, open_retry, rejected_keys
from pipeline.source_change import GROWS, compare, tell_of_waiting
from pipeline.workspace import Workspace, behind, refuse_difference, with_proofs
from proposals.dataset import layout
from proposals.dataset.assemble import read_identity
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import Manifest
from proposals.paths import is_there


def reopen(out: Path, plan: ListedPlan, identity: JobIdentity, manifest: Manifest, say: Say) -> Workspace:
    """Go on with what is being added to the dataset in ``out``, add what ``plan`` has more, or find it complete.

    Raises AlignDetError, listing the differences, when the dataset is of another job, or when images are gone or were
    changed.
    """
    finish_commit(out, manifest)
    theirs = JobIdentity.of(manifest)
    identity = identity.as_told_by(theirs)
    if holds_retry(out, manifest):
        return _begun_retry(out, plan, identity.diff(theirs), manifest, say)
    if not identity.diff(theirs, versions=False):
        take_back_append(out, manifest, say)
        return Workspace(out, plan, identity, {}, manifest)
    # A run that was stopped while it committed may have left the longer plan: its first part is the committed one.
    committed = PlanFile(out / layout.PLAN, len(manifest.shards))
    records = committed_records(out, manifest)
    change = compare(committed, plan, rejected_keys(records))
    refusals, grows = change.refusals(), bool(change.added.any())
    if refusals or not all(line.startswith(GROWS) for line in identity.diff(theirs, versions=grows)):
        refuse_difference(out, [*identity.diff(theirs), *refusals])
    if (advice := change.advice()) is not None:
        say(advice)
    if not grows:
        # The same images: in another order, or of the sizes at which they were tried again.
        take_back_append(out, manifest, say)
        return Workspace(out, plan, identity, {}, manifest)
    begun = _begun_append(out, plan, identity, manifest, rejected_keys(records), say)
    if begun is not None:
        return behind(with_proofs(out, *begun, records), manifest)
    extended = ExtendedPlan(committed, plan, change.added, manifest.images_per_shard)
    start_append(out, extended, identity, manifest)
    return behind(with_proofs(out, extended, identity, records), manifest)


def _begun_retry(
    out: Path, plan: ListedPlan, differences: list[str], manifest: Manifest, say: Say
) -> Workspace:
    """A retry that was stopped: it is finished first, whatever came since."""
    # Images that were repaired have other sizes, and so the source another fingerprint.
    differences = [line for line in differences if not line.startswith(GROWS)]
    change = compare(PlanFile(out / layout.APPEND), plan, rejected_keys(committed_records(out, manifest)))
    refuse_difference(out, [*differences, *change.refusals()])
    tell_of_waiting(change, say)
    return open_retry(out, manifest, plan)


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
        or not all(line.startswith(GROWS) for line in told.diff(theirs))
        or not are_same(PlanFile(path, shards).parts(), PlanFile(out / layout.PLAN, shards).parts())
    ):
        return None
    remove_own_leftovers(out)
    tell_of_waiting(change, say)
    return begun, theirs
