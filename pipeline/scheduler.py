"""Which shard is tried when: bounded in flight, retried with backoff, hunted for a guilty image, issued twice if slow.

Knows neither Ray nor files: attempts go to an `Executor`, records to a callback. One thread.
"""

import heapq
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from pipeline.executor import Attempt, End, Executor, Fault
from pipeline.hunt import Hunt, Span
from pipeline.image_records import Refusal
from pipeline.machines import Machines
from pipeline.plan import ShardTask
from proposals.dataset.manifest import CommitRecord

_KEPT_TIMES = 1000
_QUEUED = 500  # attempts beyond the slots: a worker that ends one finds the next, and the driver holds few
_HUNTS = 2
_WAITING = 64  # that wait to be tried again, on a small cluster, before no new shard is begun
_EXCUSES = 20
_OF_A_MACHINE = (Fault.source, Fault.versions)


@dataclass(frozen=True)
class Policy:
    """When to give up, in numbers.

    attempts_before_hunt: of a shard, per kind of fault, before its images are probed. attempts: per kind, before the
    shard fails. Of source and versions only those on another machine than the last one count, where there are several,
    and none on a machine that fails where others do not. backoff: seconds before the first retry, doubled up to
    backoff_limit. A shard is issued a second time when nothing else is left to do and it has run for more than
    straggler_factor times the median, and straggler_seconds. failures_in_a_row: shards that fail one after the other
    before no new one is tried. lost_source_fails: a shard of which no image can be read fails, as that is likely no
    fault of theirs; else they are rejected.
    """

    attempts_before_hunt: dict[Fault, int] = field(
        default_factory=lambda: {Fault.worker: 3, Fault.node: 8, Fault.source: 6}
    )
    attempts: dict[Fault, int] = field(
        default_factory=lambda: {Fault.failed: 1, Fault.busy: 10, Fault.versions: 8}
    )
    backoff: float = 1.0
    backoff_limit: float = 60.0
    straggler_factor: float = 3.0
    straggler_seconds: float = 30.0
    failures_in_a_row: int = 20
    poll_seconds: float = 1.0
    look_seconds: float = 1.0
    loser_seconds: float = 15.0
    lost_source_fails: bool = True


@dataclass(frozen=True)
class Callbacks:
    """What the scheduler tells. record: of each finished shard. event: a sentence about a fault, for people.

    tick: called in every round. confirm: the record a twice-written shard has on disk, None when it is not intact.
    """

    record: Callable[[ShardTask, CommitRecord], None]
    event: Callable[[str], None] = lambda _: None
    tick: Callable[[], None] = lambda: None
    confirm: Callable[[ShardTask], CommitRecord | None] | None = None


@dataclass(eq=False)
class _Shard:
    task: ShardTask
    faults: dict[Fault, int] = field(default_factory=dict)
    quarantine: dict[str, Refusal] = field(default_factory=dict)
    hunt: Hunt | None = None
    hunted_for: Fault = Fault.worker
    hunts: int = 0
    flying: set[int] = field(default_factory=set)
    record: CommitRecord | None = None
    written_twice: bool = False
    no_twin_until: float = 0.0
    blamed: str = ""
    excuses: int = 0


@dataclass(frozen=True)
class _Flight:
    shard: _Shard
    span: Span | None
    since: float


class Scheduler:
    """Runs the shards of a job once. Memory grows with what is in flight, not with the job."""

    def __init__(self, executor: Executor, callbacks: Callbacks, policy: Policy | None = None) -> None:
        self._executor, self._callbacks, self._policy = executor, callbacks, policy or Policy()
        self._flying: dict[int, _Flight] = {}
        self._due: list[tuple[float, int, _Shard, Span | None]] = []
        self._numbers = count()
        self._times: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._losers_until: float | None = None
        self._next_look = 0.0
        self._in_a_row = 0
        self._machines = Machines(lambda: executor.machines)
        self.failures: dict[str, str] = {}
        self.retries = 0
        self.reissued = 0

    @property
    def running(self) -> list[ShardTask]:
        """The shards in flight, probes not counted."""
        return list({flight.shard.task.name: flight.shard.task for flight in self._flying.values()}.values())

    def run(self, tasks: Iterator[ShardTask], stop: Callable[[], bool] = lambda: False) -> None:
        """Run ``tasks`` to their records or `failures`. Once ``stop`` says so, what flies ends and no more starts."""
        more = True
        while True:
            stopping = stop() or self._in_a_row >= self._policy.failures_in_a_row
            if not stopping:
                self._start_due()
                more = more and self._start_new(tasks)
                if not more and not self._due:
                    self._reissue_slow()
            if self._is_over(stopping):
                break
            for end in self._executor.wait(self._policy.poll_seconds):
                self._settle(end)
            self._callbacks.tick()

    def _is_over(self, stopping: bool) -> bool:
        if any(flight.shard.record is None for flight in self._flying.values()):
            self._losers_until = None
            return False
        if self._due and not stopping:
            return False
        if self._flying and not self._gave_up_on_losers():
            return False
        return stopping or not self._due

    def _gave_up_on_losers(self) -> bool:
        """Only attempts are left whose shard has a record: cancelled, but perhaps where nobody answers any more."""
        now = self._executor.now()
        self._losers_until = self._losers_until or now + self._policy.loser_seconds
        if now <= self._losers_until:
            return False
        for number in list(self._flying):
            self._settle(End(number))
        return True

    def _room(self) -> int:
        slots = self._executor.slots
        return slots + min(slots, _QUEUED) - len(self._flying)

    def _start_new(self, tasks: Iterator[ShardTask]) -> bool:
        while self._room() > 0 and len(self._due) < max(_WAITING, self._executor.slots):
            task = next(tasks, None)
            if task is None:
                return False
            self._start(_Shard(task), None)
        return True

    def _start_due(self) -> None:
        now = self._executor.now()
        while self._due and self._due[0][0] <= now and self._room() > 0:
            _, _, shard, span = heapq.heappop(self._due)
            self._start(shard, span)

    def _start(self, shard: _Shard, span: Span | None) -> None:
        number = next(self._numbers)
        task = shard.task if span is None else _part(shard.task, span)
        self._flying[number] = _Flight(shard, span, self._executor.now())
        shard.flying.add(number)
        probe, bad = span is not None, self._machines.bad
        spread = bool(bad or shard.blamed)
        self._executor.start(Attempt(number, task, dict(shard.quarantine), probe, bad, spread))

    def _later(self, shard: _Shard, span: Span | None, seconds: float) -> None:
        heapq.heappush(self._due, (self._executor.now() + seconds, next(self._numbers), shard, span))

    def _settle(self, end: End) -> None:
        flight = self._flying.pop(end.number, None)
        if flight is None:
            return
        shard = flight.shard
        shard.flying.discard(end.number)
        self._note_machine(end)
        if shard.record is not None:
            self._confirm(shard)
        elif flight.span is not None:
            self._settle_probe(shard, flight.span, end)
        elif end.record is not None:
            self._times.append(self._executor.now() - flight.since)
            self._finish(shard, end.record)
        else:
            self._retry(shard, end)

    def _note_machine(self, end: End) -> None:
        if not end.machine:
            return
        if end.fault is None:
            self._machines.passed(end.machine)
        elif end.fault in _OF_A_MACHINE and self._machines.failed(end.machine):
            self._callbacks.event(
                f"{end.machine} fails at what others do, which is held against no image: {end.reason}"
            )

    def _is_excused(self, shard: _Shard, end: End) -> bool:
        """Whether ``end`` tells of its machine, and so nothing of ``shard``. Not for ever: others may be gone."""
        if end.fault not in _OF_A_MACHINE or not end.machine:
            return False
        again = end.machine == shard.blamed and len(self._executor.machines) > 1
        shard.blamed = end.machine
        if end.machine in self._machines.bad:
            return True  # as long as another one does well, which gets its turn
        shard.excuses += again or not self._machines.all_known
        return (again or not self._machines.all_known) and shard.excuses <= _EXCUSES

    def _finish(self, shard: _Shard, record: CommitRecord) -> None:
        shard.record = record
        for number in shard.flying:
            self._executor.cancel(number)
        self._in_a_row = 0
        self._confirm(shard)

    def _confirm(self, shard: _Shard) -> None:
        """Report the record, once nobody writes the shard any more: what is on disk counts, whoever wrote last."""
        if shard.flying or shard.record is None:
            return
        if shard.written_twice and self._callbacks.confirm is not None:
            shard.record = self._callbacks.confirm(shard.task)
            if shard.record is None:
                shard.written_twice = False
                self._later(shard, None, 0.0)
                return
        self._callbacks.record(shard.task, shard.record)

    def _retry(self, shard: _Shard, end: End) -> None:
        fault = end.fault or Fault.failed
        excused = self._is_excused(shard, end)
        shard.faults[fault] = shard.faults.get(fault, 0) + (not excused)
        tries = max(shard.excuses, 1) if excused else shard.faults[fault]
        lasting = not excused and tries >= self._policy.attempts.get(fault, tries + 1)
        if shard.flying:
            # Its twin may still make it, or hang for ever.
            shard.no_twin_until = math.inf if lasting else self._executor.now() + self._backoff(tries)
            return
        if lasting:
            self._fail(shard, end.reason)
            return
        self.retries += 1
        if not excused and tries >= self._policy.attempts_before_hunt.get(fault, tries + 1):
            self._hunt(shard, fault, end.reason)
            return
        if not excused:
            self._callbacks.event(f"shard {shard.task.name}: {end.reason}, trying again")
        self._later(shard, None, self._backoff(tries))

    def _backoff(self, tries: int) -> float:
        return float(min(self._policy.backoff * 2 ** (tries - 1), self._policy.backoff_limit))

    def _fail(self, shard: _Shard, reason: str) -> None:
        self.failures[shard.task.name] = reason
        self._in_a_row += 1
        self._callbacks.event(f"shard {shard.task.name} failed: {reason}")

    def _hunt(self, shard: _Shard, fault: Fault, reason: str) -> None:
        # Machines may go as often as they like, and no shard fails for it.
        shard.hunts += fault is not Fault.node
        if shard.hunts > _HUNTS:
            self._fail(shard, f"{reason}, again and again, although each of its images passes alone")
            return
        shard.excuses = 0
        self._callbacks.event(f"shard {shard.task.name}: {reason}, again; looking for the image that does it")
        shard.hunted_for, shard.hunt = fault, Hunt(len(shard.task))
        for span in shard.hunt.spans():
            self._later(shard, span, 0.0)

    def _settle_probe(self, shard: _Shard, span: Span, end: End) -> None:
        hunt = shard.hunt
        if hunt is None:
            return
        excused = self._is_excused(shard, end)
        if end.fault is Fault.versions and not excused:
            shard.faults[end.fault] = shard.faults.get(end.fault, 0) + 1
        lasting = shard.faults.get(Fault.versions, 0) >= self._policy.attempts[Fault.versions]
        if end.fault is Fault.failed or lasting:
            shard.hunt = None
            self._due = [entry for entry in self._due if entry[2] is not shard]
            heapq.heapify(self._due)
            self._fail(shard, end.reason)
            return
        elsewhere = end.fault is Fault.node and shard.hunted_for is not Fault.node
        if end.fault in (Fault.busy, Fault.versions) or elsewhere or excused:
            self._later(shard, span, self._policy.backoff)
            return
        following = hunt.passed(span) if end.fault is None else hunt.failed(span)
        for part in following:
            self._later(shard, part, self._policy.backoff)
        if hunt.is_over:
            self._sentence(shard, hunt, end.reason)

    def _sentence(self, shard: _Shard, hunt: Hunt, reason: str) -> None:
        shard.hunt = None
        shard.faults.clear()
        all_guilty = len(hunt.guilty) == hunt.size
        lost = shard.hunted_for is Fault.source
        if all_guilty and (self._policy.lost_source_fails if lost else hunt.size > 1):
            # Not the fault of any one image then.
            self._fail(shard, reason)
            return
        for place in hunt.guilty:
            shard.quarantine[shard.task.keys[place]] = _refusal(shard.hunted_for)
            self._callbacks.event(f"image {shard.task.uris[place]} is quarantined: {reason}")
        self._later(shard, None, 0.0)

    def _reissue_slow(self) -> None:
        """Issue a second time what runs far longer than others did, while slots are idle."""
        now, idle = self._executor.now(), self._executor.slots - len(self._flying)
        if not self._times or idle <= 0 or now < self._next_look:
            return
        self._next_look = now + self._policy.look_seconds
        slow = self._slow_after()
        for flight in list(self._flying.values()):
            shard = flight.shard
            alone = flight.span is None and shard.record is None and len(shard.flying) == 1
            if idle > 0 and alone and now - flight.since > slow and now >= shard.no_twin_until:
                idle -= 1
                shard.written_twice = True
                self.reissued += 1
                self._callbacks.event(f"shard {shard.task.name} is slow: issued a second time")
                self._start(shard, None)

    def _slow_after(self) -> float:
        typical = statistics.median(self._times)
        return max(self._policy.straggler_seconds, self._policy.straggler_factor * typical)


def _part(task: ShardTask, span: Span) -> ShardTask:
    first, last = span
    return ShardTask(task.name, task.keys[first:last], task.uris[first:last], task.sizes[first:last])


def _refusal(fault: Fault) -> Refusal:
    if fault is Fault.source:
        return Refusal.without_traceback("read", "unreadable", "the source failed each time it was asked")
    return Refusal.without_traceback("propose", "worker_died", "the worker died each time it was tried")
