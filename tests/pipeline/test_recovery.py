"""Images that crash, hang, eat memory or kill their worker in a real job; signals; `aligndet status` meanwhile."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from pipeline.image_records import Refusal
from pipeline.status import StatusReader
from proposals.dataset import open_dataset
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe

_FAULTS = {"astronaut.jpg": "crash", "coffee.jpg": "hang", "more/motorcycle_right.jpg": "memory"}
_REASONS = {"crash": "crashed", "hang": "timeout", "memory": "out_of_memory"}
_FAULTY = (
    *("--images-per-shard", "4", "--max-side", "200"),
    *("--image-timeout", "1.5", "--image-memory", "0.25"),
)


def _rejected(out):
    return {row["uri"]: row for row in pq.read_table(out / "rejected.parquet").to_pylist()}


def _boxes(out):
    return {record.uri: record.boxes.tolist() for record in open_dataset(out)}


@pytest.fixture(scope="module")
def undisturbed(photos, mine_folder, tmp_path_factory):
    return mine_folder(photos, tmp_path_factory.mktemp("undisturbed") / "out", Recipe(max_side=200), 4)


def test_images_that_crash_hang_and_eat_memory_are_quarantined_alone(photos, tmp_path, start, undisturbed):
    out, begin = tmp_path / "out", time.monotonic()
    status, output = start(photos, out, "--workers", "2", *_FAULTY, faults=_FAULTS).wait()
    print(f"three faulty images, two attempts each: the job took {time.monotonic() - begin:.1f} s")
    assert status == 0, output
    assert {uri: row["reason"] for uri, row in _rejected(out).items()} == {
        uri: _REASONS[fault] for uri, fault in _FAULTS.items()
    }
    assert _boxes(out) == {uri: boxes for uri, boxes in _boxes(undisturbed).items() if uri not in _FAULTS}
    assert not verify_dataset(out, deep=True).problems


@pytest.mark.slow
def test_one_worker_and_two_give_the_same_bytes_of_faulty_images(photos, tmp_path, start, content):
    for workers in "12":
        status, output = start(
            photos, tmp_path / workers, "--workers", workers, *_FAULTY, faults=_FAULTS
        ).wait()
        assert status == 0, output
    assert content(tmp_path / "1") == content(tmp_path / "2")


@pytest.mark.slow
def test_an_image_that_kills_its_worker_is_found_and_the_rest_of_its_shard_is_as_if_it_had_been_known(
    photos, tmp_path, start, mine_folder, content
):
    out, expected = tmp_path / "out", tmp_path / "expected"
    status, output = start(
        photos,
        out,
        "--workers",
        "2",
        "--images-per-shard",
        "4",
        "--max-side",
        "200",
        faults={"cat.jpg": "worker"},
    ).wait()
    assert status == 0, output
    assert "image cat.jpg is quarantined" in output
    (row,) = _rejected(out).values()
    assert (row["uri"], row["stage"], row["reason"]) == ("cat.jpg", "propose", "worker_died")
    refusal = Refusal.without_traceback("propose", "worker_died", row["detail"])
    mine_folder(photos, expected, Recipe(max_side=200), 4, quarantine={row["key"]: refusal})
    assert content(out) == content(expected)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_lets_running_shards_finish_and_a_second_one_stops_at_once(
    photos, tmp_path, start, number, code
):
    out = tmp_path / "out"
    slow = {path.relative_to(photos).as_posix(): "slow" for path in photos.rglob("*.jpg")}
    options = ("--workers", "1", "--images-per-shard", "1", "--max-side", "200")
    mining = start(photos, out, *options, faults=slow)
    mining.wait_for_shards(1)
    mining.process.send_signal(number)
    status, output = mining.wait()
    assert status == code, output
    assert "stopping:" in output
    assert "Run the same command again to resume" in output
    assert "Traceback" not in output
    drained = len(list(out.glob("shards/*.json")))
    assert 2 <= drained < 8
    assert not list(out.rglob("*.tmp-*"))
    mining = start(photos, out, *options, faults=slow)
    mining.wait_for_shards(drained + 1)
    mining.process.send_signal(number)
    mining.wait_for_words("stopping:")
    mining.process.send_signal(number)
    status, output = mining.wait()
    assert status == code, output
    assert "Traceback" not in output
    assert start(photos, out, *options[2:]).wait()[0] == 0
    assert len(_boxes(out)) == 8


def _status(out, *options):
    command = [sys.executable, "-m", "proposals", "status", str(out), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.slow
def test_status_tells_a_running_job_from_a_killed_and_a_finished_one(photos, tmp_path, start):
    out = tmp_path / "out"
    with pytest.raises(AlignDetError, match="holds no mining job"):
        StatusReader(out).read()
    options = ("--images-per-shard", "2", "--max-side", "200")
    mining = start(photos, out, "--workers", "1", *options, faults={"more/rocket.jpg": "hang"})
    mining.wait_for_shards(2)
    found = json.loads(_status(out, "--json")[1])
    assert (found["state"], found["planned"], found["shards"]) == ("running", 8, 4)
    assert found["shards_done"] >= 2
    assert found["running"]
    mining.process.kill()
    mining.wait()
    (heartbeat,) = out.glob("progress.tmp-*")
    beat = json.loads(heartbeat.read_text())
    heartbeat.write_text(json.dumps({**beat, "updated": beat["updated"] - 3600}))
    killed = StatusReader(out).read()
    assert killed.state == "stopped"
    assert 0 < killed.images + killed.rejected < 8
    assert "run the same `aligndet mine` again" in _status(out)[1]
    assert start(photos, out, *options).wait()[0] == 0
    finished = StatusReader(out).read()
    assert (finished.state, finished.images, finished.shards_done) == ("finished", 8, 4)
    assert finished.slowest_stage in ("propose", "write")
    code, text = _status(out)
    assert code == 0
    assert "finished" in text
    assert not list(out.glob("*.tmp-*"))
    assert not verify_dataset(out).problems


def test_a_heartbeat_left_behind_is_no_stranger_in_a_dataset(undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    (copy / "progress.tmp-job.json").write_text("{}")
    assert not verify_dataset(copy).problems
    assert StatusReader(copy).read().state == "finished"
