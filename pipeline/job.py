"""A job from end to end: list the source, begin or resume, mine what is pending, commit."""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.begin import begin
from pipeline.claim import release
from pipeline.commit import commit
from pipeline.driver import Driven, Observer, Where, count_of, drive
from pipeline.heartbeat import Heartbeat, kept_alive
from pipeline.limits import Limits
from pipeline.plan import ShardTask, make_plan
from pipeline.retry import abandon, begin_retry
from pipeline.scheduler import Policy
from pipeline.shard_task import Count, Work, code_versions
from pipeline.signals import Drain
from pipeline.sources import Source
from pipeline.workspace import Workspace
from proposals.dataset import layout
from proposals.dataset.checks.folder import file_faults
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import CommitRecord, Manifest, library_versions, read_record
from proposals.errors import AlignDetError
from proposals.fetch import with_raw_bytes
from proposals.opencv import require_ximgproc
from proposals.paths import is_remote, real_path
from proposals.recipe import Recipe
from proposals.selective_search.types import Engine


@dataclass(frozen=True)
class JobOptions:
    """How a job runs. Nothing here changes a byte of the dataset, except images_per_shard.

    workers: processes, one core each (None: every core available, or the cluster's). address: of a Ray cluster.
    retry_rejected: only try the rejected images of a finished dataset again. embed: whether image files become part
    of the dataset.
    """

    images_per_shard: int = 64
    workers: int | None = None
    address: str | None = None
    engine: Engine = "fast"
    limits: Limits = field(default_factory=Limits)
    retry_rejected: bool = False
    embed: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a job left behind. mined: what this run did itself; cost: its seconds per stage, summed over workers."""

    manifest: Manifest
    records: dict[str, CommitRecord]
    mined: Count = field(default_factory=Count)
    cost: dict[str, float] = field(default_factory=dict)
    already_complete: bool = False


def run_job(source: Source, out: Path, recipe: Recipe, options: JobOptions, observer: Observer) -> Outcome:
    """Mine the images of ``source`` into the dataset folder ``out``, or resume, or find it complete.

    Raises AlignDetError: bad source, folder of another job, interrupted (exit code 130), or shards that failed
    after their retries (named with their reasons; the others are kept and a rerun resumes).
    """
    if options.engine == "opencv":
        require_ximgproc()
    with Drain() as drain:
        try:
            return _run(source, out, recipe, options, observer, drain)
        except KeyboardInterrupt:
            raise _interrupted(out, drain.exit_code) from None


def _run(
    source: Source, out: Path, recipe: Recipe, options: JobOptions, observer: Observer, drain: Drain
) -> Outcome:
    out = out.resolve() if is_remote(out) else real_path(out)
    with kept_alive(out):
        workspace = _open(source, out, recipe, options, observer)
        if workspace.finished is not None:
            return Outcome(workspace.finished, {}, already_complete=True)
        try:
            return _drive(source, workspace, recipe, options, observer, drain)
        finally:
            release(workspace.out)


def _drive(
    source: Source,
    workspace: Workspace,
    recipe: Recipe,
    options: JobOptions,
    observer: Observer,
    drain: Drain,
) -> Outcome:
    job = workspace.identity.fingerprint()
    embed = workspace.identity.images is None
    versions = code_versions(workspace.identity.versions)
    work = Work(source, workspace.out, recipe, job, options.engine, options.limits, embed, versions)
    resumed = sum((count_of(record) for record in workspace.done.values()), Count())
    observer.start(workspace.plan.images, resumed)
    driven = Driven()
    if workspace.pending:
        heartbeat = Heartbeat(workspace.out, resumed)
        where = Where(options.address, options.workers)
        confirm = partial(proven, workspace.out, work.job)
        # Images that are tried again stay rejected, as they were, and do not keep those that pass from being kept.
        policy = Policy(lost_source_fails=not workspace.retried)
        driven = drive(workspace.pending, work, where, drain, (observer, heartbeat), resumed, confirm, policy)
    _require_all(workspace, driven, drain)
    records = {**workspace.done, **driven.records}
    if workspace.relieved and not _some_passed(workspace, records):
        observer.say("none of the rejected images passed: the dataset stays as it was")
        manifest = abandon(workspace, records)
    else:
        manifest = commit(workspace, records, observer.say)
    return Outcome(manifest, records, driven.count, _cost(driven.records))


def _open(source: Source, out: Path, recipe: Recipe, options: JobOptions, observer: Observer) -> Workspace:
    if options.retry_rejected:
        return begin_retry(out, recipe, source, observer.say)
    plan = make_plan(source.entries(), options.images_per_shard)
    if source.left_out:
        more = f" and {len(source.left_out) - 10} more" if len(source.left_out) > 10 else ""
        observer.say(f"datasets below the source, no part of it: {', '.join(source.left_out[:10])}{more}")
    # A list may name an image twice, a tar hold it once more as a link of its own name.
    if plan.repeated is not None and source.kind == "folder":
        raise AlignDetError(
            f"{plan.repeated} and {os.fsencode(with_raw_bytes(plan.repeated))!r}, which is not UTF-8, would have one "
            f"name in a dataset. Rename one of these two below {source.images.root}."
        )
    if plan.again:
        observer.say(f"names that the source has again, each image counting once: {plan.again}")
    identity = JobIdentity(
        recipe=recipe,
        source=plan.source(source.kind, source.images.column),
        images_per_shard=options.images_per_shard,
        versions=library_versions(),
        images=None if options.embed else source.images,
    )
    return begin(out, plan, identity, observer.say)


def _some_passed(workspace: Workspace, records: dict[str, CommitRecord]) -> bool:
    return any(records[name].shard.images for name in workspace.retried)


def proven(out: Path, job: str, task: ShardTask) -> CommitRecord | None:
    """The commit record of ``task`` if it is of this ``job`` and its files have the content it declares."""
    try:
        record = read_record(layout.record_path(out, task.name))
        faults = [fault for entry in record.shard.files for fault in file_faults(out, entry, content=True)]
    except AlignDetError:
        return None
    return record if record.job == job and not faults else None


def _require_all(workspace: Workspace, driven: Driven, drain: Drain) -> None:
    missing = len(workspace.pending) - len(driven.records)
    if missing and drain.number is not None:
        raise _interrupted(workspace.out, drain.exit_code)
    if missing:
        lines = "".join(f"\n  shard {name}: {reason}" for name, reason in sorted(driven.failures.items()))
        tried = len(driven.failures)
        untried = (
            f"\n{missing - tried} more were not tried after so many failures." if missing > tried else ""
        )
        raise AlignDetError(
            f"{tried} of {len(workspace.pending)} shards failed:{lines}{untried}\n"
            "The others are kept. Fix the cause and run the same command again to resume."
        )


def _interrupted(out: Path, exit_code: int) -> AlignDetError:
    done = sum(1 for _ in (out / layout.SHARDS).glob("*.json"))
    error = AlignDetError(
        f"interrupted: {done} shards are done in {out}. Run the same command again to resume."
    )
    error.exit_code = exit_code
    return error


def _cost(records: dict[str, CommitRecord]) -> dict[str, float]:
    cost: dict[str, float] = {}
    for record in records.values():
        for stage, seconds in record.timing.items():
            cost[stage] = cost.get(stage, 0.0) + seconds
    return cost
