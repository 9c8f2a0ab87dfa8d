"""Live counts of running shards, through real sockets and a real Ray."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.cluster import connected
from pipeline.shard_task import Count
from pipeline.tally import ActorTally, SocketTally

_SEND = """
import sys
from pipeline.shard_task import Count
from pipeline.tally import SocketReports
for images in (1, 2):
    SocketReports(sys.argv[1]).send("00001", Count(images, 10 * images, 3))
"""


def test_the_last_report_of_each_wanted_shard_counts():
    tally = SocketTally()
    subprocess.run([sys.executable, "-c", _SEND, tally.reports._path], check=True)
    tally.reports.send("00002", Count(5))
    assert tally.counts({"00001", "00003"}) == {"00001": Count(2, 20, 3)}
    assert tally.counts({"00001", "00002"}) == {"00001": Count(2, 20, 3)}
    tally.close()


def test_reports_to_a_driver_that_is_gone_harm_nobody():
    tally = SocketTally()
    tally.close()
    tally.reports.send("00001", Count(1))


def test_a_driver_that_does_not_listen_stops_no_worker():
    tally = SocketTally()
    for images in range(2000):
        tally.reports.send("00001", Count(images))
    assert tally.counts({"00001"})["00001"].images > 0
    tally.close()


def test_where_a_socket_has_no_room_for_its_name_there_are_no_live_counts(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    tally = SocketTally()
    tally.reports.send("00001", Count(1))
    assert tally.counts({"00001"}) == {}
    assert not list(deep.iterdir())


def test_a_tally_that_is_closed_leaves_nothing_behind(monkeypatch):
    # Not tmp_path, which may be too long for a socket.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        tally = SocketTally()
        assert len(list(Path(folder).glob("*/tally"))) == 1
        tally.close()
        assert not list(Path(folder).iterdir())


def test_reports_of_shards_that_are_not_asked_for_are_forgotten():
    tally = SocketTally()
    for number in range(100):
        tally.reports.send(f"{number:05d}", Count(number))
        assert tally.counts({f"{number:05d}"}) == {f"{number:05d}": Count(number)}
    assert tally.counts({f"{number:05d}" for number in range(99)}) == {}
    tally.close()


def _wait_for(tally, expected, send=lambda: None):
    """Return when ``tally`` gives ``expected`` of its shards, as it must in the end."""
    deadline = time.monotonic() + 60
    while tally.counts(set(expected)) != expected:
        assert time.monotonic() < deadline
        send()
        time.sleep(0.05)


def test_in_a_cluster_the_last_report_of_each_wanted_shard_counts_and_a_lost_actor_costs_reports_only():
    with connected(None, 1) as ray:
        tally = ActorTally(ray)
        send = ray.remote(num_cpus=1)(lambda reports, *report: reports.send(*report))
        for images in (1, 2):
            ray.get(send.remote(tally.reports, "00001", Count(images, 10 * images, 3)))
        tally.reports.send("00002", Count(5))
        _wait_for(tally, {"00001": Count(2, 20, 3)})
        tally.reports.send("00003", Count(7))
        _wait_for(tally, {"00001": Count(2, 20, 3), "00003": Count(7)})
        assert tally.counts({"00003"}) == {"00003": Count(7)}
        ray.kill(tally._actor, no_restart=False)
        # What is sent while it starts again is lost; workers send again and again.
        _wait_for(tally, {"00003": Count(8)}, lambda: tally.reports.send("00003", Count(8)))
        assert tally.counts({"00001", "00003"}) == {"00003": Count(8)}
