"""Shards without images, for schedulers whose cluster is simulated."""

from collections.abc import Iterator

from pipeline.executor import Attempt, End, Fault
from pipeline.plan import ShardTask
from proposals.dataset.manifest import CommitRecord, Rejection, ShardEntry


def tasks_of(shards: int, size: int) -> Iterator[ShardTask]:
    """``shards`` tasks of ``size`` images each."""
    for number in range(shards):
        names = tuple(f"{number}-{place}" for place in range(size))
        yield ShardTask(f"{number:05d}", names, names)


def record_of(attempt: Attempt) -> CommitRecord:
    """What a worker answers that did ``attempt``, and refused what was quarantined."""
    refused = [
        Rejection(key=key, uri=key, **vars(refusal)) for key, refusal in sorted(attempt.quarantine.items())
    ]
    shard = ShardEntry(name=attempt.task.name, images=0, proposals=0, statuses={}, tar=None, parquet=None)
    return CommitRecord(job="", shard=shard, rejected=tuple(refused), timing={"total": 1.0}, versions={})


def done(attempt: Attempt, machine: str = "") -> End:
    """The end of an attempt that went well."""
    return End(attempt.number, record=None if attempt.probe else record_of(attempt), machine=machine)


def ended_by(fault: Fault, attempt: Attempt, machine: str = "") -> End:
    """The end of one that did not."""
    return End(attempt.number, fault=fault, reason=f"of {fault}", machine=machine)
