"""``ray job submit`` to a real cluster of three nodes on loopback, through the jobs HTTP API, with a token."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proposals.dataset import open_dataset

pytest.importorskip("ray", reason="the mine extra is not installed")

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LoopbackCluster:
    """A head without CPUs and two nodes of one CPU each: separate raylets, as on three machines."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.gcs, self.dashboard = free_port(), free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            **environment,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        self._folder, self._processes = folder, []

    def start(self) -> None:
        self._ray("--head", f"--port={self.gcs}", "--num-cpus=0", "--include-dashboard=true",
                  f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1",
                  f"--temp-dir={self._folder}")  # fmt: skip
        # One by one: raylets that start together on one machine take each other's ports.
        for nodes in (1, 2):
            self.wait(nodes)
            self._ray(f"--address=127.0.0.1:{self.gcs}", "--num-cpus=1")
        self.wait(nodes=3)

    def _ray(self, *options: str) -> None:
        command = [BIN / "ray", "start", *options, "--node-ip-address=127.0.0.1",
                   "--object-store-memory=100000000", "--disable-usage-stats", "--block"]  # fmt: skip
        log = (self._folder / f"node{len(self._processes)}.log").open("wb")
        self._processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def get(self, path: str, token: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {token or self.environment['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, headers=headers), timeout=30
        ) as reply:
            return json.loads(reply.read())

    def wait(self, nodes: int, seconds: float = 180) -> None:
        """Until the jobs API answers and so many nodes are alive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = self.get("/api/v0/nodes")["data"]["result"]["result"]
                if self.get("/api/jobs/") == [] and sum(node["state"] == "ALIVE" for node in found) == nodes:
                    return
            except (OSError, KeyError, TypeError, ValueError):
                pass
            time.sleep(0.5)
        logs = "".join(path.read_text(errors="replace")[-2000:] for path in self._folder.glob("node*.log"))
        pytest.fail(f"the cluster did not start in {seconds} s:\n{logs}")

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()

    def stop_job(self, name: str) -> str:
        """`ray job stop`, then what the job printed until it had ended."""
        for verb in ("stop", "logs"):
            done = subprocess.run(
                [BIN / "ray", "job", verb, "--address", self.url, name],
                env=self.environment, capture_output=True, text=True, timeout=240, check=True,
            )  # fmt: skip
        return done.stdout

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`; a head that is up may still be waiting for its agent, and says so."""
        command = [BIN / "ray", "job", "submit", "--address", self.url, *arguments]
        for _ in range(20):
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=240, check=False
            )
            if "No available agent" not in done.stderr:
                break
            time.sleep(2)
        return done


@pytest.fixture
def cluster() -> Iterator[LoopbackCluster]:
    with _running() as cluster:
        yield cluster


@pytest.fixture
def patient_cluster(photos: Path) -> Iterator[LoopbackCluster]:
    """Gives a stopped job two minutes, in place of three seconds; each image takes a second more."""
    slow = {path.relative_to(photos).as_posix(): "slow" for path in photos.rglob("*.jpg")}
    with _running(RAY_JOB_STOP_WAIT_TIME_S="120", ALIGNDET_PLANTED_FAULTS=json.dumps(slow)) as cluster:
        yield cluster


@contextmanager
def _running(**environment: str) -> Iterator[LoopbackCluster]:
    # Ray's sockets live in this folder, and a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = LoopbackCluster(Path(folder), **environment)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.mark.timeout(400)
def test_a_submitted_job_mines_on_the_clusters_nodes(cluster, photos, mined_dataset, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(urllib.error.HTTPError):
        cluster.get("/api/jobs/", token="wrong")
    runtime_env = json.dumps({"env_vars": {"ALIGNDET_TEST_MARK": "seen"}})
    command = ("aligndet", "mine", str(photos), str(out), "--images-per-shard", "3")
    done = cluster.submit("--runtime-env-json", runtime_env, "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert [path.read_bytes() for path in sorted(out.glob("shards/*.tar"))] == [
        path.read_bytes() for path in sorted(mined_dataset.glob("shards/*.tar"))
    ]
    tasks = cluster.get("/api/v0/tasks?detail=1")["data"]["result"]["result"]
    mining = [task for task in tasks if task["type"] == "NORMAL_TASK" and task["state"] == "FINISHED"]
    assert len(mining) >= 3, "the job did not run on the cluster it was submitted to"
    again = cluster.submit("--", *command)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_job_finishes_its_shards_and_goes_on_when_it_is_submitted_again(
    patient_cluster, photos, tmp_path
):
    out = tmp_path / "out"
    command = ("aligndet", "mine", str(photos), str(out), "--images-per-shard", "1", "--max-side", "200")
    submitted = patient_cluster.submit("--no-wait", "--submission-id", "first", "--", *command)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    end = time.monotonic() + 240
    while not list(out.glob("shards/*.json")):
        assert time.monotonic() < end
        time.sleep(0.1)
    printed = patient_cluster.stop_job("first")
    assert "stopping:" in printed
    assert "Run the same command again to resume" in printed
    assert "Traceback" not in printed
    assert patient_cluster.get("/api/jobs/first")["status"] == "STOPPED"
    done = {path.name: path.read_bytes() for path in out.glob("shards/*.json")}
    assert 1 < len(done) < 8
    assert not list(out.rglob("*.tmp-*"))
    again = patient_cluster.submit("--", *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(open_dataset(out)) == 8
    assert all((out / "shards" / name).read_bytes() == content for name, content in done.items())
