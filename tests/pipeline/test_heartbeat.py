"""What a driver's sign of life says, and that no beat costs a job anything."""

import json
import time
from types import SimpleNamespace

import pytest

from benchmarks.simulated_executor import SimulatedExecutor
from pipeline import heartbeat
from pipeline.executor import Fault
from pipeline.heartbeat import Heartbeat, age_of, read_heartbeat, remove_beat, this_process, write_beat
from pipeline.scheduler import Callbacks, Scheduler
from pipeline.shard_task import Count
from pipeline.status import StatusReader
from proposals.dataset.layout import HEARTBEAT
from tests.pipeline.jobs_by_hand import begun, two_images
from tests.pipeline.simulated import done, ended_by, tasks_of


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now.seconds)
    return now


def _scheduler(behaviour=lambda attempt: (1.0, done(attempt))):
    return Scheduler(SimulatedExecutor(4, behaviour), Callbacks(lambda task, record: None))


def test_the_pace_is_that_of_the_last_two_minutes_and_of_this_run_alone(tmp_path, clock):
    beats, idle, rejected = Heartbeat(tmp_path, Count(500, 0, 100)), _scheduler(), 100
    for seconds in range(1, 302):  # an image a second, then every third one rejected, too
        clock.seconds += 1.0
        rejected += seconds > 150 and seconds % 3 == 0
        beats.beat(Count(500 + seconds, 10 * seconds, rejected), idle)
        if seconds == 100:
            assert read_heartbeat(tmp_path)["rate"] == pytest.approx(1.0)
    found = read_heartbeat(tmp_path)
    assert found["rate"] == pytest.approx(4 / 3, abs=0.02)
    assert (found["images"], found["proposals"], found["rejected"]) == (801, 3010, 150)


def test_a_beat_is_not_followed_by_another_within_two_seconds(tmp_path, clock):
    beats, idle, written = Heartbeat(tmp_path, Count()), _scheduler(), []
    for images in range(40):
        clock.seconds += 0.5
        beats.beat(Count(images), idle)
        written.append(read_heartbeat(tmp_path)["images"])
    assert written == [4 * (images // 4) for images in range(40)]


def test_a_beat_tells_what_went_wrong_and_stays_small_whatever_fails(tmp_path):
    scheduler = _scheduler(lambda attempt: (1.0, ended_by(Fault.failed, attempt)))
    scheduler.failures.update({f"{number:05d}": "of the store" for number in range(3000)})
    scheduler.retries, scheduler.reissued = 7, 3
    Heartbeat(tmp_path, Count()).beat(Count(), scheduler)
    found = read_heartbeat(tmp_path)
    assert list(found["failed"]) == [f"{number:05d}" for number in range(1000)]
    assert (found["retries"], found["reissued"]) == (7, 3)
    assert found.items() >= this_process().items()
    assert age_of(found) < 60


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"7", b"\xff\xfe", b'{"updated"', json.dumps("beat").encode()]
)
def test_what_is_no_beat_is_none(tmp_path, content):
    (tmp_path / HEARTBEAT).write_bytes(content)
    assert read_heartbeat(tmp_path) is None


@pytest.mark.parametrize("updated", [None, "yesterday", [1]])
def test_a_beat_that_does_not_say_when_is_as_old_as_can_be(tmp_path, updated):
    write_beat(tmp_path, {**this_process(), "updated": updated})
    assert age_of(read_heartbeat(tmp_path)) == float("inf")
    assert age_of({}) == float("inf")


def test_a_folder_in_which_no_beat_can_be_written_or_removed_stops_nobody(tmp_path):
    (tmp_path / HEARTBEAT).mkdir()
    Heartbeat(tmp_path, Count()).beat(Count(1), _scheduler())
    remove_beat(tmp_path)
    with heartbeat.kept_alive(tmp_path / "nowhere"):
        write_beat(tmp_path / "nowhere", {})
    assert (tmp_path / HEARTBEAT).is_dir()


def test_a_driver_that_is_silent_is_taken_for_stopped_and_its_counts_are_not_told(photos, tmp_path):
    out = tmp_path / "out"
    begun(two_images(photos, tmp_path / "in"), out)
    counts = {"images": 1, "rejected": 0, "proposals": 5, "running": ["00000"], "failed": {}, "rate": 0.0}
    for ago, state, images in ((20, "running", 1), (heartbeat.SILENCE_SECONDS + 1, "stopped", 0)):
        write_beat(out, {**this_process(), **counts, "updated": time.time() - ago})
        found = StatusReader(out).read()
        assert (found.state, found.images, found.rate, found.eta) == (state, images, None, None)


def test_a_queue_of_many_is_counted_and_not_all_named(tmp_path):
    found = {}

    def watched(attempt):
        if attempt.task.name == "01400":
            Heartbeat(tmp_path, Count()).beat(Count(), scheduler)
            found.update(read_heartbeat(tmp_path))
        return 1.0, done(attempt)

    scheduler = Scheduler(SimulatedExecutor(1500, watched), Callbacks(lambda task, record: None))
    scheduler.run(tasks_of(1500, 1))
    assert len(found["running"]) == 1000
    assert 1000 < found["in_flight"] <= 1500
