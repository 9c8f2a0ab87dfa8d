"""The scheduler's promises, on a cluster in virtual time whose workers die as the test wants."""

import errno
import random
from collections import Counter
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulated_executor import SimulatedExecutor
from pipeline.executor import Attempt, End, Fault
from pipeline.faults import fault_of
from pipeline.hunt import Hunt
from pipeline.scheduler import Callbacks, Policy, Scheduler
from pipeline.shard_task import OtherVersionsError
from pipeline.sources import SourceUnavailableError
from tests.pipeline.simulated import record_of, tasks_of


class _World:
    """Workers that die of ``deadly`` images, lose ``luck`` of their attempts, and need a second an image."""

    def __init__(self, deadly=(), fault=Fault.worker, luck=0.0, seed=0, slow=lambda attempt: 1.0):
        self.deadly, self.fault, self.luck, self.slow = set(deadly), fault, luck, slow
        self.random = random.Random(seed)
        self.attempts = []

    def __call__(self, attempt):
        self.attempts.append(attempt)
        seconds = len(attempt.task) * self.slow(attempt)
        if self.deadly & (set(attempt.task.keys) - set(attempt.quarantine)):
            return seconds / 2, End(attempt.number, fault=self.fault, reason="it died")
        if self.random.random() < self.luck:
            return seconds / 2, End(
                attempt.number, fault=self.random.choice(list(Fault)[1:]), reason="bad luck"
            )
        return seconds, End(attempt.number, record=None if attempt.probe else record_of(attempt))


def _run(world, shards=20, size=8, slots=4, stop=lambda: False, policy=None, confirm=None):
    executor, records, events = SimulatedExecutor(slots, world), {}, []

    def record(task, done):
        assert task.name not in records, "a shard must be reported once"
        records[task.name] = done

    callbacks = Callbacks(record, events.append, confirm=confirm)
    scheduler = Scheduler(executor, callbacks, policy)
    scheduler.run(tasks_of(shards, size), stop)
    return scheduler, executor, records, events


def _quarantined(records):
    return {row.key: row.reason for record in records.values() for row in record.rejected}


def test_every_shard_is_mined_once_and_few_are_in_flight():
    world = _World()
    scheduler, executor, records, _ = _run(world, shards=500, slots=4)
    assert len(records) == len(world.attempts) == 500
    assert executor.most_in_flight == 8
    assert (scheduler.failures, scheduler.retries) == ({}, 0)


@given(
    shards=st.integers(1, 12),
    size=st.integers(1, 9),
    slots=st.integers(1, 5),
    luck=st.floats(0, 0.3),
    seed=st.integers(0, 1000),
)
def test_workers_and_machines_that_die_by_chance_cost_no_shard_and_no_image(shards, size, slots, luck, seed):
    scheduler, _, records, _ = _run(_World(luck=luck, seed=seed), shards, size, slots)
    # An image is only condemned by failing alone three times: rare, and never silent.
    assert len(records) + len(scheduler.failures) == shards
    if luck < 0.05:
        assert not scheduler.failures
        assert not _quarantined(records)


@given(deadly=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=5), slots=st.integers(1, 6))
def test_exactly_the_images_that_kill_their_worker_are_quarantined(deadly, slots):
    names = {f"{shard}-{place}" for shard, place in deadly}
    scheduler, _, records, _ = _run(_World(names), shards=4, size=8, slots=slots)
    assert not scheduler.failures
    assert len(records) == 4
    assert _quarantined(records) == dict.fromkeys(names, "worker_died")


def test_a_shard_of_one_deadly_image_is_done_without_it():
    scheduler, _, records, events = _run(_World({"2-0"}), shards=4, size=1)
    assert not scheduler.failures
    assert _quarantined(records) == {"2-0": "worker_died"}
    assert any("image 2-0 is quarantined" in event for event in events)


def test_an_image_that_the_source_never_gives_is_refused_and_a_lost_source_is_no_fault_of_images():
    scheduler, _, records, _ = _run(_World({"2-3"}, Fault.source))
    assert not scheduler.failures
    assert _quarantined(records) == {"2-3": "unreadable"}
    everything = {f"{shard}-{place}" for shard in range(3) for place in range(8)}
    scheduler, _, records, _ = _run(_World(everything, Fault.source), shards=3)
    assert scheduler.failures == {f"0000{number}": "it died" for number in range(3)}
    assert not records


@pytest.mark.parametrize("size", [1, 2])
def test_a_retry_is_done_without_images_of_which_none_can_be_read(size):
    names = {f"1-{place}" for place in range(size)}
    scheduler, _, records, _ = _run(_World(names, Fault.source), shards=3, size=size)
    assert list(scheduler.failures) == ["00001"]
    retry = Policy(lost_source_fails=False)
    scheduler, _, records, _ = _run(_World(names, Fault.source), shards=3, size=size, policy=retry)
    assert not scheduler.failures
    assert _quarantined(records) == dict.fromkeys(names, "unreadable")


def test_an_application_fault_is_not_tried_again_and_the_rest_is_mined():
    world = _World({"2-3"}, Fault.failed)
    scheduler, _, records, _ = _run(world)
    assert scheduler.failures == {"00002": "it died"}
    assert (len(records), len(world.attempts)) == (19, 20)


def test_throttling_is_waited_out_with_growing_pauses_and_given_up_in_the_end():
    world = _World({"0-0"}, Fault.busy)
    scheduler, executor, _, _ = _run(world, shards=1, size=1)
    assert len(world.attempts) == Policy().attempts[Fault.busy]
    # Each of the attempts takes half a second.
    pauses = sum(min(2**n, 60) for n in range(Policy().attempts[Fault.busy] - 1))
    assert pauses < executor.now() < pauses + Policy().attempts[Fault.busy]
    assert scheduler.failures == {"00000": "it died"}


def test_when_shard_after_shard_fails_the_rest_is_not_tried():
    deadly = {f"{shard}-0" for shard in range(1000)}
    scheduler, _, _, _ = _run(_World(deadly, Fault.failed), shards=1000)
    assert Policy().failures_in_a_row <= len(scheduler.failures) < 40


@pytest.mark.parametrize("fault", [Fault.busy, Fault.node])
def test_a_probe_that_ends_for_another_reason_says_nothing_of_its_images(fault):
    world, cut = _World({"1-3"}), Counter()

    def behaviour(attempt):
        if attempt.probe and cut[attempt.task.keys] < 3:
            cut[attempt.task.keys] += 1
            return 1.0, End(attempt.number, fault=fault, reason="cut off")
        return world(attempt)

    scheduler, _, records, _ = _run(behaviour, shards=3)
    assert cut
    assert (len(records), scheduler.failures) == (3, {})
    assert _quarantined(records) == {"1-3": "worker_died"}


def _dies_of(whole, alone):
    """A worker that is lost with so many attempts at a shard, and with so many probes."""
    left = {False: whole, True: alone}

    def behaviour(attempt):
        if left[attempt.probe]:
            left[attempt.probe] -= 1
            return 1.0, End(attempt.number, fault=Fault.worker, reason="it died")
        return 1.0, End(attempt.number, record=None if attempt.probe else record_of(attempt))

    return behaviour


@pytest.mark.parametrize(("deaths", "quarantined"), [(2, {}), (3, {"0-0": "worker_died"})])
def test_an_image_is_condemned_by_three_deaths_alone_and_not_by_two(deaths, quarantined):
    whole = Policy().attempts_before_hunt[Fault.worker]
    scheduler, _, records, _ = _run(_dies_of(whole, deaths), shards=1, size=1)
    assert not scheduler.failures
    assert _quarantined(records) == quarantined


def test_a_hunt_that_finds_nobody_clears_the_shard_of_what_led_to_it():
    # After each of the two hunts that a shard may have it is tried as often as before the first.
    whole = 3 * Policy().attempts_before_hunt[Fault.worker] - 1
    scheduler, _, records, events = _run(_dies_of(whole, 0), shards=1)
    assert (len(records), scheduler.failures, _quarantined(records)) == (1, {}, {})
    assert sum("looking for the image" in event for event in events) == 2


@pytest.mark.parametrize("fault", [Fault.worker, Fault.busy])
def test_a_probe_is_repeated_after_a_pause(fault):
    policy, started = Policy(backoff=10.0), []

    def behaviour(attempt):
        if not attempt.probe:
            return 1.0, End(attempt.number, fault=Fault.worker, reason="it died")
        started.append(executor.now())
        return 1.0, End(attempt.number, fault=fault if len(started) < 3 else None, reason="cut off")

    executor = SimulatedExecutor(4, behaviour)
    asked = []
    callbacks = Callbacks(lambda *_: None)
    Scheduler(executor, callbacks, policy).run(
        tasks_of(1, 1), lambda: len(started) == 3 or asked.append(None)
    )
    assert len(started) == 3
    assert all(later - earlier >= 1.0 + policy.backoff for earlier, later in pairwise(started))


def test_many_shards_may_fail_when_others_between_them_do_not():
    shards = 4 * Policy().failures_in_a_row
    deadly = {f"{shard}-0" for shard in range(0, shards, 2)}
    scheduler, _, records, _ = _run(_World(deadly, Fault.failed), shards=shards)
    assert len(records) == len(scheduler.failures) == shards // 2


def test_a_machine_that_goes_away_twenty_times_costs_attempts_only():
    losses = {"left": 20}

    def behaviour(attempt):
        if attempt.task.name == "00001" and losses["left"]:
            losses["left"] -= 1
            return 1.0, End(attempt.number, fault=Fault.node, reason="gone")
        return 8.0, End(attempt.number, record=None if attempt.probe else record_of(attempt))

    scheduler, _, records, _ = _run(behaviour, shards=3)
    assert (len(records), scheduler.failures, _quarantined(records)) == (3, {}, {})


def test_no_shard_fails_for_machines_that_go_away_again_after_every_hunt():
    losses = {"left": 4 * Policy().attempts_before_hunt[Fault.node]}

    def behaviour(attempt):
        if not attempt.probe and losses["left"]:
            losses["left"] -= 1
            return 1.0, End(attempt.number, fault=Fault.node, reason="gone")
        return 8.0, End(attempt.number, record=None if attempt.probe else record_of(attempt))

    scheduler, _, records, _ = _run(behaviour, shards=1)
    assert losses["left"] == 0
    assert (len(records), scheduler.failures, _quarantined(records)) == (1, {}, {})


def test_a_request_to_stop_lets_what_flies_finish_and_starts_nothing():
    world, asked = _World(), []
    _, executor, records, _ = _run(world, stop=lambda: len(asked) > 10 or asked.append(None))
    assert len(records) == len(world.attempts)
    assert executor.most_in_flight <= len(records) < 20


def test_a_straggler_is_issued_again_when_nothing_else_is_left():
    first = set()

    def slow(attempt):
        hangs = attempt.task.name == "00019" and not first
        first.update({attempt.number} if hangs else ())
        return 10_000.0 if hangs else 1.0

    world, confirmed = _World(slow=slow), []

    def confirm(task):
        confirmed.append(task.name)
        return record_of(world.attempts[-1])

    scheduler, executor, records, _ = _run(world, confirm=confirm)
    assert len(records) == 20
    assert scheduler.reissued == 1
    assert executor.now() < 1000
    assert len(world.attempts) == 21


def test_a_shard_somewhat_slower_than_the_others_is_left_alone():
    slowest = Policy().straggler_factor * 0.9
    world = _World(slow=lambda attempt: 100.0 * (slowest if attempt.task.name == "00019" else 1.0))
    scheduler, _, records, _ = _run(world)
    assert (len(records), len(world.attempts), scheduler.reissued) == (20, 20, 0)


class _NotesCancels(SimulatedExecutor):
    """Whose attempts go on all the same: the cluster may hear of it too late."""

    def __init__(self, slots, behaviour):
        super().__init__(slots, behaviour)
        self.cancelled = []

    def cancel(self, number):
        self.cancelled.append(number)


def test_a_twice_written_shard_that_is_not_intact_is_mined_again():
    first = set()

    def slow(attempt):
        late = attempt.task.name == "00019" and not first
        first.update({attempt.number} if late else ())
        return 50.0 if late else 1.0

    world, asked = _World(slow=slow), []

    def confirm(task):
        asked.append(task.name)
        return None if len(asked) == 1 else record_of(world.attempts[-1])

    policy = Policy(loser_seconds=10_000.0)
    executor, records = _NotesCancels(4, world), {}
    callbacks = Callbacks(lambda task, record: records.update({task.name: record}), confirm=confirm)
    Scheduler(executor, callbacks, policy).run(tasks_of(20, 8))
    assert asked == ["00019"]
    assert len(records) == 20
    assert [a.task.name for a in world.attempts].count("00019") == 3


def test_the_slower_of_two_twins_is_cancelled_and_no_other():
    first = []

    def slow(attempt):
        if attempt.task.name == "00019":
            first.append(attempt.number)
        return 100.0 if first == [attempt.number] else 1.0

    world = _World(slow=slow)
    executor = _NotesCancels(4, world)
    callbacks = Callbacks(lambda *_: None, confirm=lambda _: record_of(world.attempts[-1]))
    Scheduler(executor, callbacks).run(tasks_of(20, 8))
    assert executor.cancelled == first[:1]


def test_the_time_that_losers_get_begins_when_nothing_else_is_left():
    # The first attempts lose to their twins, at 81 s. That of 00018 ends soon after and has damaged what the twin
    # wrote: mined again, from 86 s to 106 s. That of 00019 goes on all the while, longer than losers get at once.
    seconds = {"00018": [54.0, 8.0, 20.0], "00019": [79.0, 8.0]}
    ends, confirmed, records = {}, {}, {}

    def behaviour(attempt):
        lasts = seconds.get(attempt.task.name)
        duration = lasts.pop(0) if lasts else 8.0
        ends.setdefault(attempt.task.name, []).append(executor.now() + duration)
        return duration, End(attempt.number, record=record_of(attempt))

    def confirm(task):
        again = task.name == "00018" and task.name not in confirmed
        confirmed[task.name] = executor.now()
        return None if again else record_of(Attempt(0, task))

    executor = _NotesCancels(4, behaviour)
    callbacks = Callbacks(lambda task, record: records.update({task.name: record}), confirm=confirm)
    Scheduler(executor, callbacks).run(tasks_of(20, 8))
    assert len(records) == 20
    lost_at = ends["00019"][0]
    assert lost_at > ends["00018"][1] + Policy().loser_seconds
    assert confirmed["00019"] == lost_at


@given(st.integers(1, 70), st.data())
def test_a_hunt_finds_all_and_only_the_guilty(size, data):
    guilty = data.draw(st.sets(st.integers(0, size - 1), max_size=4))
    hunt, probes = Hunt(size), 0
    while not hunt.is_over:
        span = hunt.spans()[0]
        probes += 1
        (hunt.failed if guilty & set(range(*span)) else hunt.passed)(span)
    assert set(hunt.guilty) == guilty
    assert probes <= 2 + 4 * max(1, len(guilty)) * (size.bit_length() + 2)


# What no machine that sees the same folder can write; and where errors of clients of servers come from.
_LASTING = errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP
_NETWORK = (
    "aiohttp.client_exceptions",
    "aiobotocore.httpsession",
    "botocore.exceptions",
    "urllib3.exceptions",
    "requests.exceptions",
    "httpx",
    "httpcore._exceptions",
    "google.api_core.exceptions",
)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ConnectionResetError(), Fault.busy),
        (TimeoutError(), Fault.busy),
        (OSError(errno.EIO, "x"), Fault.busy),
        (OSError(errno.ENOSPC, "x"), Fault.failed),
        (PermissionError(errno.EACCES, "x"), Fault.failed),
        (IsADirectoryError(), Fault.failed),
        (NotADirectoryError(), Fault.failed),
        (FileExistsError(), Fault.failed),
        *((OSError(number, "x"), Fault.failed) for number in _LASTING),
        (OtherVersionsError("numpy 1 there, 2 here"), Fault.versions),
        (SourceUnavailableError("cut off"), Fault.source),
        (ChildProcessError("killed"), Fault.worker),
        (MemoryError(), Fault.worker),
        (ValueError("ours"), Fault.failed),
        *((type("Error", (Exception,), {"__module__": name})(), Fault.busy) for name in _NETWORK),
        (type("Error", (Exception,), {"__module__": "googly.httpx"})(), Fault.failed),
    ],
)
def test_faults_of_the_machine_are_told_from_those_of_the_application(error, fault):
    assert fault_of(error) is fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Fault.busy),
        (OSError(errno.EROFS, "Read-only file system", "/tmp/x"), Fault.busy),
        (PermissionError(errno.EACCES, "Permission denied", "/tmp/x"), Fault.busy),
        (PermissionError("Access Denied"), Fault.failed),  # as an S3 client says it
        (SourceUnavailableError("cut off"), Fault.source),
    ],
)
def test_a_worker_whose_own_disk_is_full_does_not_fail_a_shard_that_goes_to_a_url(error, fault):
    assert fault_of(error, remote=True) is fault


class _Cluster(SimulatedExecutor):
    """Machines of four slots each; on those called ``bad`` every attempt fails at once. Others take ``seconds``."""

    def __init__(self, machines, bad, fault=Fault.source, seconds=5.0):
        super().__init__(4 * machines, self._behave)
        self.living, self.bad, self.fault, self.seconds = set(range(machines)), bad, fault, seconds
        self.free = [machine for machine in range(machines) for _ in range(4)]
        self.at, self.attempts_on = {}, Counter()

    @property
    def machines(self):
        return frozenset(f"machine {machine}" for machine in self.living)

    def _behave(self, attempt):
        # As Ray does: what was used last, but spread over all once a machine is known to be bad.
        machine = self.free.pop(0 if attempt.spread else -1)
        self.at[attempt.number] = machine
        machine = machine if machine in self.living else min(self.living)
        self.attempts_on[machine] += 1
        name = f"machine {machine}"
        if machine in self.bad:
            seconds = 20.0 if name in attempt.bad else 0.05
            return seconds, End(attempt.number, fault=self.fault, reason="not mounted", machine=name)
        record = None if attempt.probe else record_of(attempt)
        return self.seconds * len(attempt.task) / 8, End(attempt.number, record=record, machine=name)

    def _fill(self):
        running = {number for _, number, _ in self._running}
        for number in [number for number in self.at if number not in running]:
            self.free.append(self.at.pop(number))
        super()._fill()


def _run_on(executor, shards):
    records, events = {}, []
    callbacks = Callbacks(lambda task, done: records.update({task.name: done}), events.append)
    scheduler = Scheduler(executor, callbacks)
    waiting = []
    scheduler.run(tasks_of(shards, 8), lambda: waiting.append(len(scheduler._due)) or False)
    return scheduler, records, events, max(waiting)


@pytest.mark.parametrize(
    ("machines", "bad", "seconds"),
    [
        (2, {0}, 5), (2, {0}, 300), (3, {0, 1}, 60), (4, {0}, 5), (4, {1, 2}, 60), (4, {0, 1, 3}, 60),
        (10, {0, 3, 9}, 5), (10, {*range(10)} - {4}, 45),
    ],
)  # fmt: skip
@pytest.mark.parametrize("fault", [Fault.source, Fault.versions])
def test_a_machine_that_fails_at_what_others_do_costs_no_image_and_no_shard(machines, bad, seconds, fault):
    executor = _Cluster(machines, bad, fault, seconds)
    scheduler, records, events, _ = _run_on(executor, shards=400)
    assert len(records) == 400
    assert (scheduler.failures, _quarantined(records)) == ({}, {})
    told = [event for event in events if "fails at what others do" in event]
    assert {event.split(" fails")[0] for event in told} == {f"machine {number}" for number in bad}
    longest = executor.now() / 20 + 20
    assert all(executor.attempts_on[machine] < 4 * longest + 1000 for machine in bad)


def test_shards_that_wait_to_be_tried_again_are_few():
    # A store that throttles everybody for a while: the queue of those that wait does not grow with the job.
    world, calls = _World(), count()
    throttled = lambda attempt: (0.1, End(attempt.number, fault=Fault.busy, reason="slow down"))  # noqa: E731
    executor = SimulatedExecutor(
        4, lambda attempt: throttled(attempt) if next(calls) < 300 else world(attempt)
    )
    scheduler, records, _, waiting = _run_on(executor, shards=1000)
    assert (len(records), scheduler.failures) == (1000, {})
    assert waiting < 64 + 8


def test_a_machine_that_is_gone_does_not_excuse_those_that_are_left():
    # It did well to its end; then the source was lost everywhere.
    executor = _Cluster(3, set())

    def lost(attempt):
        if executor.now() > 60:
            executor.living, executor.bad = {1, 2}, {0, 1, 2}
        return _Cluster._behave(executor, attempt)

    executor._behaviour = lost
    scheduler, _, events, _ = _run_on(executor, shards=1000)
    assert scheduler.failures
    assert executor.now() < 600
    assert not [event for event in events if "fails at what others do" in event]


def test_an_image_that_no_machine_can_read_is_condemned_all_the_same():
    executor = _Cluster(4, {0})

    def one_is_bad(attempt):
        seconds, end = _Cluster._behave(executor, attempt)
        if "3-3" in attempt.task.keys and "3-3" not in attempt.quarantine:
            return 0.1, End(attempt.number, fault=Fault.source, reason="no such block", machine=end.machine)
        return seconds, end

    executor._behaviour = one_is_bad
    scheduler, records, _, _ = _run_on(executor, shards=100)
    assert (len(records), scheduler.failures, _quarantined(records)) == (100, {}, {"3-3": "unreadable"})


def test_a_source_that_is_lost_on_all_machines_is_lost():
    executor = _Cluster(4, {0, 1, 2, 3})
    scheduler, records, events, _ = _run_on(executor, shards=3)
    assert (len(records), set(scheduler.failures)) == (0, {"00000", "00001", "00002"})
    assert not [event for event in events if "fails at what others do" in event]


def test_a_machine_whose_mount_came_back_is_as_good_as_others():
    executor = _Cluster(2, {0})
    seen = []

    def repaired(attempt):
        if len(seen) > 100:
            executor.bad = set()
        seen.append(attempt.bad)
        return _Cluster._behave(executor, attempt)

    executor._behaviour = repaired
    _, records, _, _ = _run_on(executor, shards=400)
    assert (len(records), _quarantined(records)) == (400, {})
    assert any(seen)
    assert not seen[-1]


def test_a_shard_that_hangs_is_issued_again_when_its_twin_failed():
    hangs, calls = 10.0**9, count()

    def behave(attempt):
        if attempt.task.name != "00003":
            return 5.0, End(attempt.number, record=record_of(attempt))
        number = next(calls)
        if number == 0:
            return hangs, End(attempt.number, record=record_of(attempt))
        if number < 4:
            return 1.0, End(attempt.number, fault=Fault.busy, reason="slow down")
        return 5.0, End(attempt.number, record=record_of(attempt))

    executor, records, confirmed = SimulatedExecutor(4, behave), {}, []

    def confirm(task):
        confirmed.append(task.name)
        return records.get(task.name) or record_of(Attempt(0, task))

    callbacks = Callbacks(lambda task, done: records.update({task.name: done}), confirm=confirm)
    scheduler = Scheduler(executor, callbacks)
    scheduler.run(tasks_of(6, 8), lambda: executor.now() > 10_000)
    assert sorted(records) == [f"{number:05d}" for number in range(6)]
    assert executor.now() < 1000
    assert confirmed == ["00003"]


def test_a_twin_that_fails_for_good_has_no_third():
    calls = count()

    def behave(attempt):
        if attempt.task.name != "00003":
            return 5.0, End(attempt.number, record=record_of(attempt))
        if next(calls) == 0:
            return 5000.0, End(attempt.number, record=record_of(attempt))
        return 1.0, End(attempt.number, fault=Fault.failed, reason="no space left on device")

    executor, records = SimulatedExecutor(4, behave), {}
    scheduler = Scheduler(executor, Callbacks(lambda task, done: records.update({task.name: done})))
    scheduler.run(tasks_of(6, 8))
    assert (len(records), scheduler.failures, scheduler.reissued) == (6, {}, 1)
