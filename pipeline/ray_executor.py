"""Attempts as Ray tasks: one core each, and a share of memory; Ray's own retries are off, the scheduler's are on."""

import time
from typing import Any

from pipeline.cluster import TASK_MEMORY, import_ray
from pipeline.executor import Attempt, End, Fault
from pipeline.faults import fault_of
from pipeline.shard_task import Count, Work, mine_shard, probe_images
from proposals.dataset.manifest import CommitRecord

_SLOTS_SECONDS = 5.0
_REPORT_SECONDS = 1.0
# Reports reach one actor, and it should not see more than some hundred a second.
_REPORTERS_PER_SECOND = 200


class RayExecutor:
    """See `pipeline.executor.Executor`. workers: how many attempts at once; None: as many as the cluster has cores."""

    def __init__(self, work: Work, workers: int | None) -> None:
        self._ray, self._workers = import_ray(), workers
        ray = self._ray
        self._cores, self._cores_until = 1, 0.0
        self._work = ray.put(work)
        self._remote = ray.remote(num_cpus=1, memory=_task_memory(ray), max_retries=0)(_remote_attempt)
        self._tally = _start_tally(ray)
        self._asked: Any = None
        self._ask_after = 0.0
        self._counts: dict[str, Count] = {}
        self._flying: dict[Any, Attempt] = {}

    @property
    def slots(self) -> int:
        """See `Executor`."""
        if self._workers is not None:
            return self._workers
        if time.monotonic() > self._cores_until:
            self._cores_until = time.monotonic() + _SLOTS_SECONDS
            self._cores = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        return self._cores

    def start(self, attempt: Attempt) -> None:
        """See `Executor`."""
        pause = max(_REPORT_SECONDS, self.slots / _REPORTERS_PER_SECOND)
        self._flying[self._remote.remote(attempt, self._work, self._tally, pause)] = attempt

    def wait(self, seconds: float) -> list[End]:
        """See `Executor`."""
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
        if self._asked is not None and self._ray.wait([self._asked], timeout=0)[0]:
            try:
                self._counts = self._ray.get(self._asked)
            except self._ray.exceptions.RayError:
                self._counts = {}  # the actor is being restarted
            self._asked = None
        if self._asked is None and time.monotonic() > self._ask_after:
            self._ask_after = time.monotonic() + _REPORT_SECONDS
            self._asked = self._tally.keep.remote(flying)
        return sum((count for name, count in self._counts.items() if name in flying), Count())

    def _end(self, reference: Any) -> End:
        attempt = self._flying.pop(reference)
        errors = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            return End(attempt.number, fault=fault_of(cause), reason=f"{type(cause).__name__}: {cause}")
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return End(attempt.number, fault=Fault.worker, reason=f"its worker died ({type(error).__name__})")
        except errors.RayError as error:
            return End(
                attempt.number, fault=Fault.node, reason=f"its machine was lost ({type(error).__name__})"
            )
        return End(attempt.number, record=CommitRecord.model_validate_json(result) if result else None)


class _Tally:
    """Ray actor: how far each running shard is. A retried shard overwrites its count, so nothing counts twice."""

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}

    def report(self, name: str, count: Count) -> None:
        self._counts[name] = count

    def keep(self, names: set[str]) -> dict[str, Count]:
        self._counts = {name: count for name, count in self._counts.items() if name in names}
        return self._counts


def _start_tally(ray: Any) -> Any:
    # Where the driver is: a machine that goes away must not take it along.
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Tally).remote()


def _task_memory(ray: Any) -> int:
    # Never more than the largest machine has: Ray would wait for one for ever.
    offers = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(min(TASK_MEMORY, max(offers, default=TASK_MEMORY)))


def _remote_attempt(attempt: Attempt, work: Work, tally: Any, pause: float) -> str:
    if attempt.probe:
        probe_images(attempt.task, work)
        return ""
    last = 0.0

    def report(count: Count) -> None:
        nonlocal last
        if time.monotonic() - last > pause:
            last = time.monotonic()
            tally.report.remote(attempt.task.name, count)

    return mine_shard(attempt.task, work, report, attempt.quarantine).model_dump_json()
