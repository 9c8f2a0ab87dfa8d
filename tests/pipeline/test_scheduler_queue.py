"""What waits and what flies at the scheduler: when each shard has its turn, where it is sent, and how many at once."""

import random
from collections import Counter
from itertools import count

import pytest

from benchmarks.simulated_executor import SimulatedExecutor
from pipeline.executor import Fault
from pipeline.scheduler import Callbacks, Policy, Scheduler
from tests.pipeline.simulated import done, ended_by, tasks_of


def _run(executor, shards, size=1, policy=None, stop=lambda: False):
    records = {}
    callbacks = Callbacks(lambda task, record: records.update({task.name: record}))
    scheduler = Scheduler(executor, callbacks, policy)
    scheduler.run(tasks_of(shards, size), stop)
    return scheduler, records


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hunts_that_end_in_failure_keep_nobody_waiting_beyond_its_pause(seed):
    # Of every third shard one half is looked at more closely when the other half fails for good, while others wait.
    luck, tried, ended, late = random.Random(seed), Counter(), {}, []
    policy = Policy(attempts_before_hunt={Fault.worker: 1}, failures_in_a_row=1000)

    def behaviour(attempt):
        name, now = attempt.task.name, executor.now()
        if int(name) % 3 == 0:
            if not attempt.probe:
                return luck.uniform(0.1, 10.0), ended_by(Fault.worker, attempt)
            fails = attempt.task.keys[0].endswith("-0")
            return (1.8 if fails else 0.1), ended_by(Fault.failed if fails else Fault.worker, attempt)
        if name in ended:
            late.append(now - ended[name] - policy.backoff * 2 ** (tried[name] - 1))
        tried[name] += 1
        seconds = luck.uniform(0.1, 3.0)
        ended[name] = now + seconds
        return seconds, done(attempt) if tried[name] > 4 else ended_by(Fault.busy, attempt)

    executor = SimulatedExecutor(1000, behaviour)
    scheduler, records = _run(executor, 90, size=8, policy=policy)
    assert (len(scheduler.failures), len(records)) == (30, 60)
    assert len(late) == 4 * 60
    assert max(late) < 1.5 * policy.poll_seconds


def test_on_a_large_cluster_shards_that_wait_keep_no_slot_from_others():
    policy, numbers, finished = Policy(backoff=1000.0, backoff_limit=1000.0), count(), []

    def behaviour(attempt):
        if next(numbers) < 100:
            return 1.0, ended_by(Fault.busy, attempt)
        finished.append(executor.now())
        return 1.0, done(attempt)

    executor = SimulatedExecutor(200, behaviour)
    _run(executor, 1000, policy=policy)
    assert len(finished) == 1000
    assert sum(when < policy.backoff for when in finished) == 900


def test_a_thousand_slots_have_five_hundred_attempts_queued():
    executor = SimulatedExecutor(1000, lambda attempt: (1.0, done(attempt)))
    _, records = _run(executor, 3000)
    assert len(records) == 3000
    assert executor.most_in_flight == 1500


def test_of_slow_shards_as_many_are_issued_twice_as_slots_are_idle():
    # Four slots: one shard is done at once, the others hang.
    tried = Counter()

    def behaviour(attempt):
        tried[attempt.task.name] += 1
        hangs = attempt.task.name != "00000" and tried[attempt.task.name] == 1
        return (1000.0 if hangs else 1.0), done(attempt)

    executor = SimulatedExecutor(4, behaviour)
    scheduler, records = _run(executor, 4)
    assert (len(records), scheduler.reissued) == (4, 3)
    assert executor.most_in_flight == 4


class _Machines(SimulatedExecutor):
    machines = frozenset({"left", "right"})


def test_a_shard_that_a_machine_gave_back_asks_for_another_one():
    # Ray fills the first machine that has room: most likely the same again.
    asked = {}

    def behaviour(attempt):
        asked.setdefault(attempt.task.name, []).append(attempt.spread)
        lost = attempt.task.name == "00001" and len(asked["00001"]) == 1
        return 1.0, ended_by(Fault.source, attempt, "left") if lost else done(attempt, "right")

    _, records = _run(_Machines(2, behaviour), 3)
    assert len(records) == 3
    assert asked == {"00000": [False], "00001": [False, True], "00002": [False]}


def test_once_a_machine_is_bad_new_shards_are_spread_over_the_others():
    spread = []

    def behaviour(attempt):
        fresh = attempt.task.name not in dict(spread)
        spread.append((attempt.task.name, attempt.spread))
        lost = fresh and int(attempt.task.name) < 8
        return 1.0, ended_by(Fault.source, attempt, "left") if lost else done(attempt, "right")

    _, records = _run(_Machines(1, behaviour), 20)
    assert len(records) == 20
    last = [asked for name, asked in spread if name == "00019"]
    assert (spread[0][1], last) == (False, [True])


@pytest.mark.parametrize(("failing", "condemned"), [(40, 0), (10_000, 1)])
def test_a_machine_that_alone_was_asked_is_believed_in_the_end_and_a_hunt_asks_it_anew(failing, condemned):
    # The right machine is busy for hours, so nobody knows whether the fault is the left one's.
    tried = count()

    def behaviour(attempt):
        if attempt.task.name == "00000":
            return 5000.0, done(attempt, "right")
        if attempt.quarantine or next(tried) >= failing:
            return 1.0, done(attempt, "right")
        return 1.0, ended_by(Fault.source, attempt, "left")

    executor = _Machines(2, behaviour)
    policy = Policy(lost_source_fails=False, poll_seconds=20.0)
    _, records = _run(executor, 2, policy=policy, stop=lambda: executor.now() > 10_000)
    assert len(records["00001"].rejected) == condemned
