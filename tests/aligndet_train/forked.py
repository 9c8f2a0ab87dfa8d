"""The trainer's verbs as processes of their own that need not import torch and mmdet first.

They are forks of one server that has: real processes, which can be killed, ten seconds sooner each. Tests of what
happens while a command starts run the command itself.
"""

import atexit
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from proposals.cli import main

# One server of this process: `tests.aligndet_train.ranks` forks from it, too.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.aligndet_train.preloaded"])
_started: list["Command"] = []


class Command:
    """``aligndet ARGUMENTS`` with what it prints in a file; named and used as `subprocess.Popen` is."""

    def __init__(self, arguments: Sequence[str], **environment: str) -> None:
        self._printed = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115
        given = (list(arguments), {**os.environ, **environment}, self._printed.name)
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()
        _started.append(self)

    @property
    def pid(self) -> int:
        """Its process id."""
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
        """(all it printed, None) once it has ended."""
        self.wait(timeout)
        return self._read(), None

    def send_signal(self, number: int) -> None:
        """Send it signal ``number``."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it."""
        self._process.kill()

    def _read(self) -> str:
        self._printed.seek(0)
        return self._printed.read()


@atexit.register
def _end_all() -> None:
    # Of a test that failed: multiprocessing would wait for them.
    for command in _started:
        command.kill()


def _run(arguments: list[str], environment: dict[str, str], printed: str) -> None:
    # The server passes over a module that cannot be imported.
    assert "aligndet_train.training" in sys.modules
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = ["aligndet", *arguments]
    try:
        main()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        # A child of multiprocessing leaves without them.
        atexit._run_exitfuncs()
