"""The trainer's verbs as processes of their own that need not import torch and mmdet first.

They are forks of one server that has: real processes, which can be killed, each sooner by as long as its imports take.
What a verb does in a fresh interpreter is shown where the command itself runs, as in test_training.py.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest

from proposals.cli import main

_ROOT = Path(__file__).parents[2]
_context = multiprocessing.get_context("forkserver")
_started: list["Command"] = []


def context() -> multiprocessing.context.ForkServerContext:
    """Of processes that one server forks, which has imported `tests.aligndet_train.preloaded`."""
    _context.set_forkserver_preload(["tests.aligndet_train.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        # Whatever the test has changed: the server finds modules by its folder, and serves later tests as well.
        patch.chdir(_ROOT)
        # No process may be forked from one that has threads or has asked CUDA for its devices.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        multiprocessing.forkserver.ensure_running()
    return _context


class Command:
    """``aligndet ARGUMENTS`` with what it prints in a file; its methods are some of `subprocess.Popen`'s."""

    def __init__(self, arguments: Sequence[str], **environment: str) -> None:
        self._printed = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115
        given = (list(arguments), {**os.environ, **environment}, str(Path.cwd()), self._printed.name)
        self._process = context().Process(target=_run, args=given)
        self._process.start()
        _started.append(self)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Its exit status, -N when signal N ended it, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """The exit status; AssertionError when it still runs after ``timeout`` seconds."""
        self._process.join(timeout)
        assert self.returncode is not None, f"still running: {self._read()}"
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """(all it printed, None) once it has ended, see `wait`."""
        self.wait(timeout)
        return self._read(), None

    def send_signal(self, number: int) -> None:
        """Send it signal ``number``, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it, unless it has ended."""
        self._process.kill()

    def _read(self) -> str:
        self._printed.seek(0)
        return self._printed.read()


def finish(process: "Command | subprocess.Popen[str]", expect: int = 0) -> str:
    """What it printed until it ended with ``expect``."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expect, output
    return output


def finish_all(ranks: list[Command]) -> None:
    """All of them well. Of one that failed, what it printed: another only says that it was left alone."""
    ended = [rank.communicate()[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(ended)


def wait_for(path: Path, process: "Command | subprocess.Popen[str]") -> None:
    """Return as soon as ``process`` has written ``path``."""
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@atexit.register
def _end_all() -> None:
    # Of a test that failed: multiprocessing would wait for them.
    for command in _started:
        command.kill()


def _run(arguments: list[str], environment: dict[str, str], folder: str, printed: str) -> None:
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    # As in a terminal: a suite that runs under nohup would hand on that it is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        # The server passes over a module that cannot be imported.
        assert "aligndet_train.training" in sys.modules
        # As for a user: inside such a process the default is to start a server, which would import all again.
        multiprocessing.set_start_method("fork", force=True)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["aligndet", *arguments]
        main()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        # A child of multiprocessing leaves without them.
        atexit._run_exitfuncs()
