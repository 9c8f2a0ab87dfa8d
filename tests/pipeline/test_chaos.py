"""Workers, raylets and drivers killed at random times on a real Ray cluster of three nodes: not a byte differs."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from pipeline.planted_faults import VARIABLE
from proposals.dataset import open_dataset
from proposals.dataset.verify import verify_dataset
from proposals.recipe import Recipe

_SETTINGS = Recipe(max_side=128)
# So that a lost node is noticed within two seconds and not within half a minute.
_SYSTEM = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def crops(photos, tmp_path_factory):
    """``crops(count)``: a folder of so many different crops of photographs, one of them cut off in the middle."""

    def make(count):
        folder = tmp_path_factory.mktemp("crops")
        sources = [cv2.imread(str(path)) for path in sorted(photos.rglob("*.jpg"))]
        for number in range(count):
            image, inset = sources[number % len(sources)], 2 * (number // len(sources))
            cv2.imwrite(str(folder / f"{number:03d}.jpg"), image[inset : inset + 96, inset : inset + 120])
        torn = folder / "001.jpg"
        torn.write_bytes(torn.read_bytes()[:2000])
        return folder

    return make


@pytest.fixture
def cluster(monkeypatch):
    """``cluster(images)``: a head without cores and two nodes of one core; every image takes a second longer."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = []

    def make(images):
        slow = {path.name: "slow" for path in images.glob("*.jpg")}
        monkeypatch.setenv(VARIABLE, json.dumps(slow))
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": 2**27,
            "_system_config": _SYSTEM,
        }
        made.append(Cluster(initialize_head=True, head_node_args=head))
        for _ in range(2):
            made[-1].add_node(wait=False, **_NODE)
        made[-1].wait_for_nodes()
        return made[-1]

    yield make
    for one in made:
        one.shutdown()
    if ray.is_initialized():
        ray.shutdown()


_NODE = {"num_cpus": 1, "object_store_memory": 2**27}


class _Chaos:
    """Kills what it is told, and puts something new in its place as an operator or a cloud would."""

    def __init__(self, cluster, start, images, out, seed):
        self._cluster, self._random = cluster, random.Random(seed)
        self._start = lambda: start(
            images,
            out,
            "--address",
            cluster.address,
            "--workers",
            "2",
            "--images-per-shard",
            "2",
            "--max-side",
            "128",
        )
        self.driver = self._start()
        self.kills = []

    def pause(self, longest):
        time.sleep(self._random.uniform(0.2, longest))
        assert self.driver.process.poll() in (None, 0), self.driver.printed()

    def kill(self, kind):
        self.kills.append(kind) if getattr(self, f"_kill_{kind}")() else None

    def _kill_worker(self):
        workers = [pid for node in self._cluster.worker_nodes for pid in _workers(_raylet(node))]
        if not workers:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._random.choice(sorted(workers)), signal.SIGKILL)
        return True

    def _kill_raylet(self):
        node = self._random.choice(sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id))
        os.kill(_raylet(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.add_node(wait=False, **_NODE)
        return True

    def _kill_driver(self):
        self.driver.process.kill()
        self.driver.wait()
        self.driver = self._start()
        return True

    @property
    def over(self):
        return self.driver.process.poll() is not None


def _raylet(node):
    return node.all_processes["raylet"][0].process.pid


def _workers(raylet):
    lists = Path(f"/proc/{raylet}/task").glob("*/children")
    children = [int(pid) for path in lists for pid in path.read_text().split()]
    titles = {pid: Path(f"/proc/{pid}/cmdline") for pid in children}
    return [
        pid for pid, title in titles.items() if title.exists() and b"_remote_attempt" in title.read_bytes()
    ]


def _records(out):
    """Every commit record without what differs from run to run."""
    records = {path.name: json.loads(path.read_text()) for path in out.glob("shards/*.json")}
    return {
        name: {field: value for field, value in record.items() if field not in ("timing", "digest")}
        for name, record in records.items()
    }


def _survives(chaos, images, out, expected, content):
    status, output = chaos.driver.wait()
    assert status == 0, output
    print(f"killed: {', '.join(chaos.kills)}")
    assert content(out) == content(expected)
    assert _records(out) == _records(expected)
    rows = [record.uri for record in open_dataset(out)]
    rejected = pq.read_table(out / "rejected.parquet").column("uri").to_pylist()
    assert sorted([*rows, *rejected]) == sorted(path.name for path in images.glob("*.jpg"))
    assert rejected == ["001.jpg"]
    assert not verify_dataset(out, deep=True).problems


def test_a_killed_worker_a_lost_node_and_a_killed_driver_change_no_byte(
    crops, cluster, start, mine_folder, content, tmp_path
):
    images = crops(12)
    expected = mine_folder(images, tmp_path / "expected", _SETTINGS, images_per_shard=2)
    chaos = _Chaos(cluster(images), start, images, tmp_path / "out", seed=0)
    chaos.driver.wait_for_shards(1)
    chaos.kill("worker")
    chaos.pause(1)
    chaos.kill("raylet")
    chaos.pause(1)
    chaos.kill("driver")
    _survives(chaos, images, tmp_path / "out", expected, content)
    assert {"raylet", "driver"} <= set(chaos.kills)


def test_a_machine_without_the_images_costs_none_of_them(
    crops, cluster, start, mine_folder, content, tmp_path
):
    images = crops(24)
    expected = mine_folder(images, tmp_path / "expected", _SETTINGS, images_per_shard=1)
    nodes = cluster(images)
    lost = {path.name: "lost" for path in images.glob("*.jpg")}
    nodes.add_node(wait=True, env_vars={VARIABLE: json.dumps(lost)}, **_NODE)
    options = ("--address", nodes.address, "--images-per-shard", "1", "--max-side", "128")
    status, output = start(images, tmp_path / "out", *options).wait()
    assert status == 0, output
    assert "fails at what others do" in output
    assert content(tmp_path / "out") == content(expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1])
def test_twenty_kills_at_random_times_and_three_resumes_change_no_byte(
    seed, crops, cluster, start, mine_folder, content, tmp_path
):
    images = crops(120)
    expected = mine_folder(images, tmp_path / "expected", _SETTINGS, images_per_shard=2)
    chaos = _Chaos(cluster(images), start, images, tmp_path / "out", seed)
    chaos.driver.wait_for_shards(1)
    order = random.Random(seed)
    wanted = ["driver"] * 3 + ["raylet"] * 5 + ["worker"] * 12
    order.shuffle(wanted)
    for kind in wanted:
        before = len(chaos.kills)
        while len(chaos.kills) == before:
            chaos.pause(4)
            assert not chaos.over, "it finished before it was killed twenty times"
            chaos.kill(kind)
    assert sorted(chaos.kills) == sorted(wanted)
    _survives(chaos, images, tmp_path / "out", expected, content)
