"""Running the real command in a real process, and comparing what it wrote."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def _command(images: Path, out: Path, *options: str) -> list[str]:
    program = "from proposals.cli import main; main()"
    return [sys.executable, "-c", program, "mine", str(images), str(out), *options]


class Mining:
    """`aligndet mine` in a process group of its own."""

    def __init__(self, images: Path, out: Path, *options: str) -> None:
        self.out = out
        self.process = subprocess.Popen(
            _command(images, out, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> tuple[int, str]:
        """(exit status, everything it printed)."""
        output, _ = self.process.communicate(timeout=240)
        return self.process.returncode, output

    def wait_for_shards(self, count: int) -> None:
        """Return as soon as ``count`` commit records exist."""
        self._until(lambda: len(list(self.out.glob("shards/*.json"))) >= count)

    def kill_worker(self) -> None:
        """SIGKILL the process that runs a shard now."""
        victims: list[int] = []
        self._until(lambda: bool(victims.extend(_shard_workers(self.process.pid)) or victims))
        os.kill(victims[0], signal.SIGKILL)

    def _until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not ready():
            assert self.process.poll() is None, f"it ended too early: {self.process.stdout.read()}"
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _shard_workers(driver: int) -> list[int]:
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, title = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rsplit(")", 1)[1].split()[1])
        titles[int(folder.name)] = title
    return [
        pid
        for pid, title in titles.items()
        if "ray::_remote_shard" in title and _descends(pid, driver, parents)
    ]


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor


@pytest.fixture
def start() -> Callable[..., Mining]:
    """``start(images, out, *options)``: a running `aligndet mine`, killed at the end if it still runs."""
    running: list[Mining] = []

    def launch(images: Path, out: Path, *options: str) -> Mining:
        running.append(Mining(images, out, *options))
        return running[-1]

    yield launch
    for mining in running:
        if mining.process.poll() is None:
            mining.process.kill()
            mining.process.wait()


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, str]]:
    """``content(folder)``: sha256 of every file but the commit records, which hold timings."""

    def read(folder: Path) -> dict[str, str]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if not path.match("shards/*.json")
        }

    return read
