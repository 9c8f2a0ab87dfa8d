"""The driver: shard tasks onto Ray, a bounded number at a time, and what comes back."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pipeline.limits import Limits
from pipeline.plan import ShardTask, make_plan
from pipeline.shard_task import Count, Work, mine_shard
from pipeline.sources import Source, describe
from pipeline.workspace import Workspace, begin, commit
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import CommitRecord, Manifest, library_versions
from proposals.errors import AlignDetError
from proposals.opencv import require_ximgproc
from proposals.recipe import Recipe
from proposals.selective_search.types import Engine

_POLL_SECONDS = 0.25
_CRASH_RETRIES = 2
# Tasks carry names and counts, never pixels: Ray's smallest store is plenty, also where /dev/shm is small.
_OBJECT_STORE_BYTES = 96 * 1024 * 1024


@dataclass(frozen=True)
class JobOptions:
    """How a job runs. Nothing here changes a byte of the dataset, except images_per_shard.

    workers: processes, one core each (None: every core available, or the cluster's). address: of a Ray cluster.
    """

    images_per_shard: int = 64
    workers: int | None = None
    address: str | None = None
    engine: Engine = "fast"
    limits: Limits = field(default_factory=Limits)


class Observer(Protocol):
    """Who watches a job: the progress bar, or nobody."""

    def start(self, images: int, resumed: Count) -> None:
        """The job has ``images`` images; ``resumed`` of them were done by an earlier run."""

    def update(self, count: Count) -> None:
        """So much is done by now, resumed shards included."""


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
    require_ximgproc()
    entries = list(source.entries())
    identity = JobIdentity(
        recipe=recipe,
        source=describe(source.kind, entries),
        images_per_shard=options.images_per_shard,
        versions=library_versions(),
    )
    workspace = begin(out.resolve(), make_plan(entries, options.images_per_shard), identity)
    if workspace.finished is not None:
        return Outcome(workspace.finished, {}, already_complete=True)
    work = Work(source, workspace.out, recipe, identity.fingerprint(), options.engine, options.limits)
    resumed = sum((count_of(record) for record in workspace.done.values()), Count())
    observer.start(len(entries), resumed)
    fresh = _mine_pending(workspace, work, options, observer, resumed) if workspace.pending else {}
    records = {**workspace.done, **fresh}
    mined = sum((count_of(record) for record in fresh.values()), Count())
    return Outcome(commit(workspace, records), records, mined, _cost(fresh))


def count_of(record: CommitRecord) -> Count:
    """The counts of a finished shard."""
    return Count(record.shard.images, record.shard.proposals, len(record.rejected))


def _mine_pending(
    workspace: Workspace, work: Work, options: JobOptions, observer: Observer, resumed: Count
) -> dict[str, CommitRecord]:
    records: dict[str, CommitRecord] = {}
    try:
        with _cluster(options) as workers:
            crew = _Crew(work, workers)
            failures = crew.run(
                list(workspace.pending), records, lambda count: observer.update(resumed + count)
            )
    except KeyboardInterrupt:
        done = len(workspace.done) + len(records)
        raise _interrupted(workspace, done) from None
    if failures:
        lines = "".join(f"\n  shard {name}: {reason}" for name, reason in sorted(failures.items()))
        raise AlignDetError(
            f"{len(failures)} of {len(workspace.pending)} shards failed:{lines}\n"
            f"The others are kept. Fix the cause and run the same command again to resume."
        )
    return records


class _Crew:
    """Ray tasks in flight, at most two per worker, so that a plan of any length costs the driver the same."""

    def __init__(self, work: Work, workers: int) -> None:
        self._ray = ray = _import_ray()
        self._limit = 2 * workers
        self._work = ray.put(work)
        self._tally = ray.remote(num_cpus=0)(_Tally).remote()
        retries = {"max_retries": _CRASH_RETRIES, "retry_exceptions": [OSError]}
        self._remote = ray.remote(num_cpus=1, **retries)(_remote_shard)
        self._flying: dict[Any, str] = {}
        self._failures: dict[str, str] = {}

    def run(
        self, pending: list[ShardTask], records: dict[str, CommitRecord], update: Callable[[Count], None]
    ) -> dict[str, str]:
        """Run all tasks; fills ``records`` and returns the failed shards with their reasons."""
        queue = iter(pending)
        self._launch(queue, self._limit)
        while self._flying:
            ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                self._collect(reference, records)
            self._launch(queue, len(ready))
            update(self._count(records))
        return self._failures

    def _launch(self, queue: Iterator[ShardTask], room: int) -> None:
        for _, task in zip(range(room), queue, strict=False):
            self._flying[self._remote.remote(task, self._work, self._tally)] = task.name

    def _collect(self, reference: Any, records: dict[str, CommitRecord]) -> None:
        name = self._flying.pop(reference)
        try:
            records[name] = CommitRecord.model_validate_json(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            self._failures[name] = f"{type(error.cause).__name__}: {error.cause}"
        except self._ray.exceptions.RayError as error:
            self._failures[name] = f"its worker died {_CRASH_RETRIES + 1} times ({type(error).__name__})"

    def _count(self, records: dict[str, CommitRecord]) -> Count:
        live: dict[str, Count] = self._ray.get(self._tally.snapshot.remote())
        flying = sum((live[name] for name in self._flying.values() if name in live), Count())
        return sum((count_of(record) for record in records.values()), flying)


class _Tally:
    """Ray actor: how far each running shard is. A retried shard overwrites its count, so nothing counts twice."""

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}

    def report(self, name: str, count: Count) -> None:
        self._counts[name] = count

    def snapshot(self) -> dict[str, Count]:
        return self._counts


def _remote_shard(task: ShardTask, work: Work, tally: Any) -> str:
    import time

    import cv2

    cv2.setNumThreads(1)
    last = 0.0

    def report(count: Count) -> None:
        nonlocal last
        if time.monotonic() - last > _POLL_SECONDS:
            last = time.monotonic()
            tally.report.remote(task.name, count)

    return mine_shard(task, work, report).model_dump_json()


def _import_ray() -> Any:
    # Ray reads this on import; mining must not report anything to anyone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


@contextmanager
def _cluster(options: JobOptions) -> Iterator[int]:
    """An embedded Ray on this machine, or the cluster at ``options.address``; yields the number of workers."""
    ray = _import_ray()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if options.address is not None:
        _require_listener(options.address)
        try:
            ray.init(address=options.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AlignDetError(f"no Ray cluster answers at {options.address}: {error}") from error
    else:
        ray.init(
            num_cpus=options.workers or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            address="local",
            **quiet,
        )
    try:
        yield options.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    # Ray itself waits for minutes at an address where nothing listens.
    where = urlsplit(f"//{address.removeprefix('ray://')}")
    if address in ("auto", "local") or where.hostname is None or where.port is None:
        return
    try:
        socket.create_connection((where.hostname, where.port), timeout=5).close()
    except OSError as error:
        raise AlignDetError(
            f"no Ray cluster answers at {address}: {error}. Start one: ray start --head"
        ) from error


def _interrupted(workspace: Workspace, done: int) -> AlignDetError:
    total = len(workspace.done) + len(workspace.pending)
    error = AlignDetError(
        f"interrupted: {done} of {total} shards are done in {workspace.out}. Run the same command again to resume."
    )
    error.exit_code = 130
    return error


def _cost(records: dict[str, CommitRecord]) -> dict[str, float]:
    cost: dict[str, float] = {}
    for record in records.values():
        for stage, seconds in record.timing.items():
            cost[stage] = cost.get(stage, 0.0) + seconds
    return cost
