"""Runs pending shards on Ray and tells those who watch: the terminal, `aligndet status`, Prometheus."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.cluster import connected, import_ray, is_private
from pipeline.heartbeat import Heartbeat
from pipeline.plan import ShardTask
from pipeline.ray_executor import RayExecutor
from pipeline.scheduler import Callbacks, Policy, Scheduler
from pipeline.shard_task import Count, Work
from pipeline.signals import Drain
from proposals.dataset.manifest import CommitRecord
from proposals.errors import AlignDetError

_TICK_SECONDS = 0.25


class Observer(Protocol):
    """Who watches a job: the progress bar, or nobody."""

    def start(self, images: int, resumed: Count) -> None:
        """The job has ``images`` images; ``resumed`` of them were done by an earlier run."""

    def update(self, count: Count) -> None:
        """So much is done by now, resumed shards included."""

    def say(self, sentence: str) -> None:
        """Something happened that a person may want to know."""


@dataclass
class Driven:
    """What one run did. records: of the shards it mined. failures: shards it could not mine, with reasons."""

    records: dict[str, CommitRecord] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    count: Count = field(default_factory=Count)


@dataclass(frozen=True)
class Where:
    """address of a Ray cluster (None: a private one), and how many attempts at once (None: as many as cores)."""

    address: str | None
    workers: int | None


Confirm = Callable[[ShardTask], CommitRecord | None]


def drive(
    tasks: Iterable[ShardTask],
    work: Work,
    where: Where,
    drain: Drain,
    watchers: tuple[Observer, Heartbeat],
    resumed: Count,
    confirm: Confirm,
    policy: Policy,
) -> Driven:
    """Mine ``tasks``. Returns early, with what flew still finished, when ``drain`` was requested."""
    observer, heartbeat = watchers
    driven = Driven()
    with connected(where.address, where.workers):
        from pipeline.metrics import Metrics

        executor = RayExecutor(work, where.workers, local=is_private(where.address))
        metrics = Metrics()

        def record(task: ShardTask, done: CommitRecord) -> None:
            driven.records[task.name] = done
            driven.count += count_of(done)
            metrics.add(done)

        last = 0.0

        def tick() -> None:
            nonlocal last
            if time.monotonic() - last > _TICK_SECONDS:
                last = time.monotonic()
                count = resumed + driven.count + executor.live()
                observer.update(count)
                heartbeat.beat(count, scheduler)

        scheduler = Scheduler(executor, Callbacks(record, observer.say, tick, confirm), policy)
        drain.allow(lambda: observer.say(_draining(len(scheduler.running))))
        with _lost_cluster(), closing(executor):
            scheduler.run(iter(tasks), drain.requested)
    driven.failures = scheduler.failures
    return driven


def count_of(record: CommitRecord) -> Count:
    """The counts of a finished shard."""
    return Count(record.shard.images, record.shard.proposals, len(record.rejected))


@contextmanager
def _lost_cluster() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, import_ray().exceptions.RayError) as error:
        raise AlignDetError(
            f"the Ray cluster was lost ({type(error).__name__}). Finished shards are kept: once there is a cluster, "
            "run the same command again to resume."
        ) from error


def _draining(running: int) -> str:
    return f"stopping: {running} shards in flight finish first, no new one starts; once more to stop at once"
