"""The output folder of a job, once it is opened: the plan, what is proven done of it, and what is left."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.claim import Say, claimed, release
from pipeline.plan import Plan, ShardTask, tasks
from pipeline.proofs import proven_records
from proposals.dataset import layout
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import CommitRecord, Manifest
from proposals.errors import AlignDetError


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


def opened(out: Path, say: Say, opening: Callable[[], Workspace]) -> Workspace:
    """What ``opening`` gives, while ``out`` is this run's own; it stays so unless nothing is left to do."""
    with claimed(out, say):
        workspace = opening()
    if workspace.finished is not None:
        release(out)
    return workspace


def with_proofs(
    out: Path, plan: Plan, identity: JobIdentity, committed: dict[str, CommitRecord]
) -> Workspace:
    """``out`` with the records of what is ``committed`` and, of the rest of ``plan``, of what is proven done."""
    names = (layout.shard_name(number) for number in range(plan.shards))
    left = (name for name in names if name not in committed)
    return Workspace(out, plan, identity, {**committed, **proven_records(out, left, identity.fingerprint())})


def behind(workspace: Workspace, manifest: Manifest) -> Workspace:
    """``workspace``, which adds shards to the dataset of ``manifest``."""
    return replace(workspace, plan_file=layout.APPEND, base=len(manifest.shards))


def refuse_difference(out: Path, differences: list[str]) -> None:
    """Raise AlignDetError with a line for each of ``differences``, if there are any."""
    if differences:
        lines = "".join(f"\n  {line}" for line in differences)
        raise AlignDetError(
            f"{out} belongs to another job:{lines}\n"
            "Run the command that started it, with its images in place, or choose a new folder."
        )
