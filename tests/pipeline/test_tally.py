"""Live counts of running shards, through real sockets."""

import subprocess
import sys

from pipeline.shard_task import Count
from pipeline.tally import SocketTally

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
