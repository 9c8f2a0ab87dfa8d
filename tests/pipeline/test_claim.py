"""Two runs in one output folder: one of them goes on, and nothing damaged is ever committed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import claim, heartbeat
from pipeline.append import start_append, take_back_append
from pipeline.commit import commit
from pipeline.heartbeat import this_process, write_beat
from pipeline.plan import make_plan
from pipeline.retry import begin_retry
from pipeline.sources import FolderSource
from pipeline.status import StatusReader
from proposals.dataset import layout, open_dataset
from proposals.dataset.identity import JobIdentity
from proposals.dataset.layout import HEARTBEAT
from proposals.dataset.manifest import read_manifest, write_model
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.paths import as_path
from tests.pipeline.jobs_by_hand import RECIPE, begun, finish, mined, two_images


@pytest.fixture
def images(photos, tmp_path):
    return two_images(photos, tmp_path / "in")


def test_of_two_appends_at_once_none_commits_what_the_other_wrote(images, photos, tmp_path):
    out = tmp_path / "out"
    finish(images, begun(images, out))
    for name in ("n1.jpg", "n2.jpg", "n3.jpg"):
        shutil.copy(photos / "coffee.jpg", images / name)
    one = begun(images, out)
    first, second = one.pending
    records = mined(images, one, [first])
    shutil.copy(photos / "flower.jpg", images / "b.jpg")
    (images / "n1.jpg").unlink()  # or the other would go on with this one's plan
    other = begun(images, out)  # of this same process, which the heartbeat lets pass
    theirs = mined(images, other, other.pending)
    records |= mined(images, one, [second])
    before = (out / layout.MANIFEST).read_bytes()
    for opened, written in ((one, records), (other, theirs)):
        with pytest.raises(AlignDetError, match="another run took over"):
            commit(opened, {**opened.done, **written})
        assert (out / layout.MANIFEST).read_bytes() == before
        assert not verify_dataset(out, deep=True).problems
    again = begun(images, out)
    finish(images, again)
    assert len(open_dataset(out)) == 5
    assert not verify_dataset(out, deep=True).problems


def test_of_two_runs_of_one_append_each_commits_the_same(images, photos, tmp_path):
    out = tmp_path / "out"
    finish(images, begun(images, out))
    shutil.copy(photos / "coffee.jpg", images / "n1.jpg")
    one = begun(images, out)
    records = mined(images, one, one.pending)
    shutil.copy(photos / "flower.jpg", images / "b.jpg")
    other = begun(images, out)
    assert not other.pending
    commit(other, other.done)
    with pytest.raises(AlignDetError, match="another run took over"):
        commit(one, {**one.done, **records})
    finish(images, begun(images, out))
    assert len(open_dataset(out)) == 4
    assert not verify_dataset(out, deep=True).problems


def test_a_run_whose_plan_another_one_replaced_commits_nothing(images, photos, tmp_path):
    out = tmp_path / "out"
    opened = begun(images, out)
    records = mined(images, opened, opened.pending)
    shutil.copy(photos / "coffee.jpg", images / "new.jpg")
    shutil.copy(begun(images, tmp_path / "other").out / layout.PLAN, out / layout.PLAN)
    with pytest.raises(AlignDetError, match="another run took over"):
        commit(opened, records)
    assert not (out / layout.MANIFEST).exists()


_BEATS = """
import json, os, sys, time
from pipeline.heartbeat import this_process
from proposals.dataset.layout import HEARTBEAT
host = {"host": sys.argv[2]} if len(sys.argv) > 2 else {}
while True:
    with open(sys.argv[1] + "/beat", "w") as file:
        json.dump({**this_process(), **host, "started": 1.0, "updated": time.time()}, file)
    os.replace(sys.argv[1] + "/beat", f"{sys.argv[1]}/{HEARTBEAT}")
    time.sleep(0.2)
"""


@pytest.fixture
def beating():
    """``beating(out, *host)``: a process that gives signs of life there."""
    running = []

    def start(out, *host):
        out.mkdir(exist_ok=True)
        running.append(subprocess.Popen([sys.executable, "-c", _BEATS, str(out), *host]))
        while not (out / HEARTBEAT).exists():
            assert running[-1].poll() is None
            time.sleep(0.05)
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("host", [(), ("elsewhere",)])
def test_a_second_run_is_refused_while_another_one_lives(images, tmp_path, beating, host):
    out, said = tmp_path / "out", []
    process = beating(out, *host)
    with pytest.raises(AlignDetError, match=rf"another run writes to .*process {process.pid} on"):
        begun(images, out, said)
    assert not (out / layout.PLAN).exists()
    assert "to see whether it still runs" in said[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / HEARTBEAT).unlink()
    finish(images, begun(images, out))
    assert not (out / HEARTBEAT).exists()


def test_a_run_that_was_killed_on_this_machine_is_followed_at_once(images, tmp_path, beating):
    out, said = tmp_path / "out", []
    process = beating(out)
    process.kill()
    process.wait()
    finish(images, begun(images, out, said))
    assert said == []
    assert not list(out.glob("*.tmp-*"))


def test_a_run_that_was_killed_elsewhere_is_waited_for_and_followed(images, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "SILENCE_SECONDS", 2.0)
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.2)
    out, said = tmp_path / "out", []
    out.mkdir()
    last = {"host": "elsewhere", "space": "", "pid": 1, "started": 0.0, "updated": time.time()}
    (out / HEARTBEAT).write_text(json.dumps(last))
    finish(images, begun(images, out, said))
    assert "process 1 on elsewhere" in said[0]
    assert len(open_dataset(out)) == 2


@pytest.fixture
def puts(monkeypatch):
    """``puts(put)``: memory:// paths, a store without locks, put what ``put`` makes of the bytes."""
    whole = MemoryFileSystem.pipe_file

    def change(put):
        monkeypatch.setattr(
            MemoryFileSystem, "pipe_file", lambda self, path, value: whole(self, path, put(value))
        )

    yield change
    MemoryFileSystem.store.clear()


def test_where_nothing_locks_the_last_of_two_that_begin_goes_on(puts):
    theirs = {"host": "elsewhere", "space": "", "pid": 1, "started": 0.0, "updated": time.time()}
    puts(lambda _: json.dumps(theirs).encode())  # put right after our own
    out = as_path("memory://claimed/out")
    with pytest.raises(AlignDetError, match="process 1 on elsewhere"), claim.claimed(out, pytest.fail):
        pytest.fail("it went on beside the other one")
    assert heartbeat.read_heartbeat(out) == theirs


def test_a_dead_runs_beat_that_nobody_can_replace_keeps_nobody_out(puts, dead):
    out, entered = as_path("memory://claimed/out"), []
    _beat_of(out, pid=dead)

    def denied(_):
        raise PermissionError("not for you")

    puts(denied)
    with claim.claimed(out, pytest.fail):
        entered.append(heartbeat.read_heartbeat(out)["pid"])
    assert entered == [dead]


class _AskedError(Exception):
    """That a run would wait, and for how long."""


def _asks(sentence):
    raise _AskedError(sentence)


@pytest.mark.parametrize(
    ("age", "host", "waits"),
    [
        (0, "elsewhere", 30),
        (10, "elsewhere", 20),
        (27, "elsewhere", 6),  # three beats, at least
        (100, "elsewhere", 30),  # or its clock is behind
        (-100, "elsewhere", 30),  # or ahead
        (3500, "elsewhere", 30),
        (3700, "elsewhere", None),
        (10, None, 20),
        (40, None, None),  # the same clock
    ],
)
def test_how_long_another_run_is_waited_for_is_told_by_its_last_beat(tmp_path, age, host, waits):
    _beat_of(tmp_path, updated=time.time() - age, space="pid:[1]", **({"host": host} if host else {}))
    if waits is None:
        with claim.claimed(tmp_path, _asks):
            assert heartbeat.is_ours(heartbeat.read_heartbeat(tmp_path))
    else:
        with pytest.raises(_AskedError, match="waiting up to") as asked, claim.claimed(tmp_path, _asks):
            pytest.fail("it did not wait")
        # Where the machine is busy the beat is older by now, but the wait is three beats at least.
        told = int(re.search(r"up to (\d+) s", str(asked.value))[1])
        assert max(6, waits - 8) <= told <= waits


@pytest.mark.parametrize("pid", [None, "1", 1.5])
def test_a_run_that_does_not_say_which_process_it_is_is_waited_for(tmp_path, pid):
    _beat_of(tmp_path, pid=pid)
    with pytest.raises(_AskedError), claim.claimed(tmp_path, _asks):
        pytest.fail("it did not wait")


def test_a_run_that_ends_while_another_one_waits_is_followed(tmp_path):
    said = []

    def ends(sentence):
        said.append(sentence)
        (tmp_path / HEARTBEAT).unlink()

    _beat_of(tmp_path, host="elsewhere")
    with claim.claimed(tmp_path, ends):
        assert heartbeat.is_ours(heartbeat.read_heartbeat(tmp_path))
    assert len(said) == 1


@pytest.mark.parametrize("error", [OSError, AlignDetError, KeyboardInterrupt, SystemExit])
def test_what_a_process_has_is_its_own_until_it_ends_in_whatever_way(tmp_path, error):
    with claim.claimed(tmp_path, _asks):
        pass
    assert (tmp_path / HEARTBEAT).exists()
    with pytest.raises(error), claim.claimed(tmp_path, _asks):
        raise error("ended")
    assert not (tmp_path / HEARTBEAT).exists()


_CLAIMS = """
import sys
from pathlib import Path
from pipeline import claim
print("ready", flush=True)
sys.stdin.readline()
try:
    with claim.claimed(Path(sys.argv[1]), lambda _: None):
        print("claimed", flush=True)
        sys.stdin.readline()
except claim.AlignDetError as error:
    print(error, flush=True)
"""


def test_of_three_that_start_in_one_instant_one_goes_on(tmp_path):
    command = [sys.executable, "-c", _CLAIMS, str(tmp_path)]
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * 3
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    deadline = time.monotonic() + 20
    while sum(run.poll() is None for run in runs) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
        if (tmp_path / HEARTBEAT).exists():  # the one that goes on gives signs of life
            beat = json.loads((tmp_path / HEARTBEAT).read_text())
            (tmp_path / "beat").write_text(json.dumps({**beat, "updated": time.time()}))
            (tmp_path / "beat").rename(tmp_path / HEARTBEAT)
    said = sorted(run.communicate(timeout=20)[0] for run in runs)
    assert said[2] == "claimed\n"
    assert all("another run writes to" in refusal for refusal in said[:2])


def test_status_of_a_job_that_has_only_begun(images, tmp_path):
    out = tmp_path / "out"
    begun(images, out)
    assert StatusReader(out).read().state == "running"
    (out / HEARTBEAT).unlink()
    assert StatusReader(out).read().state == "stopped"


def test_the_time_left_is_that_of_images_neither_mined_nor_rejected(images, tmp_path):
    out = tmp_path / "out"
    begun(images, out)
    beat = json.loads((out / HEARTBEAT).read_text())
    done = {"images": 0, "rejected": 1, "proposals": 0, "running": ["00000"], "failed": {}, "rate": 0.5}
    (out / HEARTBEAT).write_text(json.dumps({**beat, **done}))
    status = StatusReader(out).read()
    assert (status.planned, status.rejected, status.rate, status.eta) == (2, 1, 0.5, 2.0)


def test_a_retry_is_refused_while_another_run_lives(images, tmp_path, beating):
    out = tmp_path / "out"
    (images / "torn.jpg").write_bytes(b"no image")
    finish(images, begun(images, out))
    beating(out)
    with pytest.raises(AlignDetError, match="another run writes to"):
        begin_retry(out, RECIPE, FolderSource(images))
    assert not (out / layout.APPEND).exists()


def _beat_of(out, **changes):
    write_beat(out, {**this_process(), "started": time.time(), "updated": time.time(), **changes})


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_giving_back_removes_the_beats_of_this_process_and_of_dead_ones_only(tmp_path, dead):
    for pid, left in ((os.getpid(), False), (dead, False), (os.getppid(), True)):
        _beat_of(tmp_path, pid=pid)
        claim.release(tmp_path)
        assert (tmp_path / HEARTBEAT).exists() == left


def test_a_process_of_another_container_is_not_looked_for_among_ours(tmp_path, dead):
    _beat_of(tmp_path, pid=dead, space="pid:[1]")
    claim.release(tmp_path)
    assert (tmp_path / HEARTBEAT).exists()


def test_a_run_that_waits_for_something_else_does_not_grow_old(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    with heartbeat.kept_alive(tmp_path):
        _beat_of(tmp_path, updated=time.time() - 100, images=3)
        deadline = time.monotonic() + 60
        while (beat := heartbeat.read_heartbeat(tmp_path))["updated"] < time.time() - 50:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert beat["images"] == 3
        _beat_of(tmp_path, pid=os.getppid(), updated=1.0)
        time.sleep(0.5)
        assert heartbeat.read_heartbeat(tmp_path)["updated"] == 1.0
        _beat_of(tmp_path)
        claim.release(tmp_path)
        time.sleep(0.5)
        assert not (tmp_path / HEARTBEAT).exists()


def test_a_shard_that_another_run_mined_with_other_rejections_is_not_committed(images, tmp_path):
    (images / "torn.jpg").write_bytes(b"no image")
    opened = begun(images, tmp_path / "out")
    records = mined(images, opened, opened.pending)
    (name,) = (name for name, record in records.items() if record.rejected)
    refused = [row.model_copy(update={"reason": "timeout"}) for row in records[name].rejected]
    theirs = records[name].model_copy(update={"rejected": tuple(refused)})
    write_model(layout.record_path(opened.out, name), theirs)
    with pytest.raises(AlignDetError, match="another run took over"):
        commit(opened, records)


def test_nothing_is_removed_for_an_append_when_the_dataset_has_grown_meanwhile(images, photos, tmp_path):
    out = tmp_path / "out"
    finish(images, begun(images, out))
    seen = read_manifest(out)
    shutil.copy(photos / "coffee.jpg", images / "new.jpg")
    finish(images, begun(images, out))
    shards = sorted((out / "shards").iterdir())
    plan = make_plan(FolderSource(images).entries(), 2)
    with pytest.raises(AlignDetError, match="another run took over"):
        start_append(out, plan, JobIdentity.of(seen), seen)
    assert sorted((out / "shards").iterdir()) == shards


def test_a_run_that_finds_its_added_images_gone_takes_nothing_back_of_what_another_one_committed(
    images, photos, tmp_path
):
    out = tmp_path / "out"
    finish(images, begun(images, out))
    seen = read_manifest(out)
    for name in ("n1.jpg", "n2.jpg"):
        shutil.copy(photos / "coffee.jpg", images / name)
        opened = begun(images, out)
        if name == "n1.jpg":
            finish(images, opened)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(AlignDetError, match="another run took over"):
        take_back_append(out, seen, lambda _: None)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_a_run_whose_clock_is_behind_is_seen_to_beat(images, tmp_path, beating, monkeypatch):
    monkeypatch.setattr(claim, "age_of", lambda beat: heartbeat.age_of(beat) + 60)
    out, said = tmp_path / "out", []
    beating(out, "elsewhere")
    with pytest.raises(AlignDetError, match=r"another run writes to .* on elsewhere"):
        begun(images, out, said)
    assert "to see whether it still runs" in said[0]
    assert not (out / layout.PLAN).exists()


def test_status_takes_a_beat_that_lacks_counts_for_one_of_a_job_that_has_begun(images, tmp_path):
    out = tmp_path / "out"
    begun(images, out)
    write_beat(out, {**this_process(), "updated": time.time(), "images": 1})
    assert StatusReader(out).read().state == "running"
