"""What the scheduler asks of whoever runs shard tasks: Ray, or the cluster of `benchmarks/simulated_executor.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pipeline.image_records import Refusal
from pipeline.plan import ShardTask
from proposals.dataset.manifest import CommitRecord


class Fault(StrEnum):
    """Why an attempt ended without a result. All but ``failed`` are worth another attempt."""

    failed = "failed"  # the application's own: it would be the same elsewhere
    busy = "busy"  # refused, throttled or cut off while it wrote
    source = "source"  # the source did not give an image
    versions = "versions"  # the machine has other libraries than the job was started with
    worker = "worker"  # the worker died, for want of memory or by a native fault
    node = "node"  # the machine is gone, or the object that lived there


@dataclass(frozen=True)
class Attempt:
    """One try at a shard, or at a part of it. number: unique in the job. quarantine: refused unseen, by key.

    probe: search the images and write nothing, to learn whether a worker survives them. bad: machines where images or
    libraries are missing: one of them takes its time to say so again, or it would get every attempt there is. spread:
    run on another machine than the last attempts, if that can be.
    """

    number: int
    task: ShardTask
    quarantine: Mapping[str, Refusal] = field(default_factory=dict)
    probe: bool = False
    bad: frozenset[str] = frozenset()
    spread: bool = False


@dataclass(frozen=True)
class End:
    """How an attempt ended: with a record, with nothing (a probe that passed), or by a fault with its reason.

    machine: that it ran on; empty where nobody knows.
    """

    number: int
    record: CommitRecord | None = None
    fault: Fault | None = None
    reason: str = ""
    machine: str = ""


class Executor(Protocol):
    """Runs attempts, as many at a time as it has slots; takes more and queues them."""

    @property
    def slots(self) -> int:
        """How many attempts can run at once by now; nodes come and go."""

    @property
    def machines(self) -> frozenset[str]:
        """The machines that these slots are on by now, as an `End` names them."""

    def start(self, attempt: Attempt) -> None:
        """Run ``attempt`` when a slot is free."""

    def wait(self, seconds: float) -> list[End]:
        """The ends that arrived since the last call; waits up to ``seconds`` for the first."""

    def cancel(self, number: int) -> None:
        """End an attempt whose result nobody needs. Its `End` may arrive or not."""

    def now(self) -> float:
        """A clock in seconds that never goes back."""
