"""Attempts as Ray tasks: one core each, and a share of memory; Ray's own retries are off, the scheduler's are on."""

import time
from typing import Any

from pipeline.cluster import TASK_MEMORY, import_ray
from pipeline.executor import Attempt, End, Fault
from pipeline.faults import fault_of
from pipeline.shard_task import Count, OtherVersionsError, Work, mine_shard, probe_images
from pipeline.sources import SourceUnavailableError
from pipeline.tally import ActorTally, Reports, SocketTally, Tally
from proposals.dataset.manifest import CommitRecord
from proposals.errors import MissingExtraError
from proposals.paths import is_remote

_SLOTS_SECONDS = 5.0
_BAD_SECONDS = 20.0
_REPORT_SECONDS = 1.0
# Reports reach one process, and it should not see more than some hundred a second.
_REPORTERS_PER_SECOND = 200


class RayExecutor:
    """See `pipeline.executor.Executor`. workers: how many attempts at once; None: as many as the cluster has cores.

    local: whether all of Ray is on this machine.
    """

    def __init__(self, work: Work, workers: int | None, *, local: bool) -> None:
        self._ray, self._workers = import_ray(), workers
        ray = self._ray
        self._cores, self._cores_until = 1, 0.0
        self._names: dict[str, str] = {}  # of the machines that have cores, by their nodes' ids
        self._living: frozenset[str] = frozenset()
        self._work, self._remote_output = ray.put(work), is_remote(work.out)
        self._remote = ray.remote(num_cpus=1, memory=_task_memory(ray), max_retries=0)(_remote_attempt)
        self._tally: Tally = SocketTally() if local else ActorTally(ray)
        self._flying: dict[Any, Attempt] = {}

    @property
    def slots(self) -> int:
        """See `Executor`."""
        if self._workers is not None:
            return self._workers
        self._look()
        return self._cores

    @property
    def machines(self) -> frozenset[str]:
        """See `Executor`."""
        self._look()
        return self._living

    def start(self, attempt: Attempt) -> None:
        """See `Executor`."""
        pause = max(_REPORT_SECONDS, self.slots / _REPORTERS_PER_SECOND)
        # By itself Ray fills the first machine that has room, which may be a bad one each time.
        remote = self._remote.options(scheduling_strategy="SPREAD") if attempt.spread else self._remote
        self._flying[remote.remote(attempt, self._work, self._tally.reports, pause)] = attempt

    def wait(self, seconds: float) -> list[End]:
        """See `Executor`. Raises MissingExtraError when a worker lacks a library that the images need."""
        if not self._flying:
            time.sleep(seconds)
            return []
        references = list(self._flying)
        ready, others = self._ray.wait(references, num_returns=1, timeout=seconds)
        if ready and others:
            more, _ = self._ray.wait(others, num_returns=len(others), timeout=0)
            ready = [*ready, *more]
        return [self._end(reference) for reference in ready]

    def cancel(self, number: int) -> None:
        """See `Executor`."""
        for reference, attempt in self._flying.items():
            if attempt.number == number:
                self._ray.cancel(reference, force=True)

    def now(self) -> float:
        """See `Executor`."""
        return time.monotonic()

    def live(self) -> Count:
        """How far the shards in flight are, by the last reports."""
        flying = {attempt.task.name for attempt in self._flying.values() if not attempt.probe}
        return sum(self._tally.counts(flying).values(), Count())

    def _look(self) -> None:
        """Count cores, and name the machines that have any, unless that was done a moment ago."""
        if time.monotonic() <= self._cores_until:
            return
        self._cores_until = time.monotonic() + _SLOTS_SECONDS
        nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        self._cores = max(1, int(sum(node["Resources"]["CPU"] for node in nodes)))
        # Two nodes of a test, or two containers, may share a name.
        names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})" for node in nodes}
        if names != self._names:
            self._names, self._living = names, frozenset(names.values())

    def _name_of(self, node: str) -> str:
        if node and node not in self._names:
            self._cores_until = 0.0
            self._look()
        return self._names.get(node, node)

    def close(self) -> None:
        """Stop listening for reports."""
        self._tally.close()

    def _end(self, reference: Any) -> End:
        attempt = self._flying.pop(reference)
        errors = self._ray.exceptions
        try:
            node, result = self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if isinstance(cause, MissingExtraError):
                raise _lacking(cause) from error
            fault = fault_of(cause, self._remote_output)
            machine, reason = self._name_of(getattr(cause, "node", "")), f"{type(cause).__name__}: {cause}"
            return End(attempt.number, fault=fault, reason=reason, machine=machine)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return End(attempt.number, fault=Fault.worker, reason=f"its worker died ({type(error).__name__})")
        except errors.RayError as error:
            return End(
                attempt.number, fault=Fault.node, reason=f"its machine was lost ({type(error).__name__})"
            )
        record = CommitRecord.model_validate_json(result) if result else None
        return End(attempt.number, record=record, machine=self._name_of(node))


def _lacking(cause: MissingExtraError) -> MissingExtraError:
    # Ends the job at once: every shard would fail of it, one after the other.
    return MissingExtraError(
        f"a worker cannot read its images: {cause}. Do so on every machine. Finished shards are kept: run the same "
        "command again to resume."
    )


def _task_memory(ray: Any) -> int:
    # Never more than the largest machine has: Ray would wait for one for ever.
    offers = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(min(TASK_MEMORY, max(offers, default=TASK_MEMORY)))


def _remote_attempt(attempt: Attempt, work: Work, reports: Reports, pause: float) -> tuple[str, str]:
    """The id of this node, and the commit record in JSON: empty for a probe that passed."""
    node = import_ray().get_runtime_context().get_node_id()
    try:
        return node, _attempted(attempt, work, reports, pause)
    except (SourceUnavailableError, OtherVersionsError) as error:
        error.node = node
        if any(machine.endswith(f"({node[:8]})") for machine in attempt.bad):
            time.sleep(_BAD_SECONDS)
        raise


def _attempted(attempt: Attempt, work: Work, reports: Reports, pause: float) -> str:
    if attempt.probe:
        probe_images(attempt.task, work)
        return ""
    last = 0.0

    def report(count: Count) -> None:
        nonlocal last
        if time.monotonic() - last > pause:
            last = time.monotonic()
            reports.send(attempt.task.name, count)

    return mine_shard(attempt.task, work, report, attempt.quarantine).model_dump_json()
