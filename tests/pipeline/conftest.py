"""Running the real command in a real process, and comparing what it wrote."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.planted_faults import VARIABLE


def _command(images: Path, out: Path, *options: str) -> list[str]:
    program = "from proposals.cli import main; main()"
    return [sys.executable, "-c", program, "mine", str(images), str(out), *options]


class Mining:
    """`aligndet mine` in a process group of its own."""

    def __init__(self, images: Path, out: Path, *options: str, faults: dict[str, str] | None = None) -> None:
        self.out = out
        planted = {VARIABLE: json.dumps(faults)} if faults else {}
        # A file, not a pipe: some of Ray's helpers outlive a killed driver for a while and would hold a pipe open.
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            _command(images, out, *options),
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **planted},
        )

    def wait(self) -> tuple[int, str]:
        """(exit status, everything it printed)."""
        status = self.process.wait(timeout=240)
        return status, self.printed()

    def printed(self) -> str:
        """Everything it printed so far."""
        self._printed.seek(0)
        return self._printed.read()

    def end(self) -> None:
        """Kill whatever is left of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in _session(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._printed.close()

    def wait_for_words(self, words: str) -> None:
        """Return as soon as it printed ``words``."""
        self._until(lambda: words in self.printed())

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
            assert self.process.poll() is None, f"it ended too early: {self.printed()}"
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _processes() -> dict[int, tuple[int, str]]:
    """Of every process: its session and its command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat, title = (folder / "stat").read_text(), (folder / "cmdline").read_text()
            found[int(folder.name)] = int(stat.rsplit(")", 1)[1].split()[3]), title
    return found


def _session(leader: int) -> list[int]:
    return [pid for pid, (session, _) in _processes().items() if session == leader]


def _shard_workers(driver: int) -> list[int]:
    return [
        pid
        for pid, (session, title) in _processes().items()
        if session == driver and "ray::_remote_attempt" in title
    ]


@pytest.fixture
def start() -> Callable[..., Mining]:
    """``start(images, out, *options, faults=...)``: a running `aligndet mine`, killed at the end if it still runs."""
    running: list[Mining] = []

    def launch(images: Path, out: Path, *options: str, faults: dict[str, str] | None = None) -> Mining:
        running.append(Mining(images, out, *options, faults=faults))
        return running[-1]

    yield launch
    for mining in running:
        mining.end()


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
