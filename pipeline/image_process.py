"""Images are searched in a child process that may crash, hang or run out of memory without harm to its parent.

A worker keeps one child for all its images. An image that the child does not survive is tried once more in a fresh
one, so that neither a busy machine nor what earlier images left behind condemns it; then it is refused with its reason.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.image_task import Found, Kernel, Refusal
from pipeline.limits import Limits

_ATTEMPTS = 2
_START_SECONDS = 600.0  # the first start on a machine may compile, or wait for another that does
# Nobody's image sends these: a scheduler, the kernel short of memory, or a person does.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Answer = tuple[Found | Refusal, dict[str, float]]


class _ImageFaultError(Exception):
    """The child did not survive the image, or not in time."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class ImageProcess:
    """One child, replaced by a fresh one whenever it ends. One image at a time: `begin`, then `finish`."""

    def __init__(self, kernel: Kernel, limits: Limits) -> None:
        self.kernel, self.limits = kernel, limits
        self._child: _Child | None = None
        self._request: tuple[str, bytes, str] = ("", b"", "")

    def begin(self, uri: str, data: bytes, sha256: str) -> None:
        """Hand over one image. Returns at once, unless the child has to be started first."""
        self._request = uri, data, sha256
        try:
            self._ready_child().send(self._request)
        except (_ImageFaultError, ChildProcessError):
            self.close()  # a child that died idle says nothing about this image: `finish` starts another

    def finish(self) -> Answer:
        """(what the image gave, its seconds per stage).

        Raises ChildProcessError when children are killed by something else than the image, or cannot start.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self._answer()
            except ChildProcessError:
                self.close()
                if attempt == _ATTEMPTS - 1:
                    raise
            except _ImageFaultError as error:
                fault = error
                self.close()
        return Refusal.without_traceback("propose", fault.reason, fault.detail), {}

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _answer(self) -> Answer:
        if self._child is None:
            self._ready_child().send(self._request)
        answer: Answer = self._ready_child().receive(self.limits.seconds)
        return answer

    def _ready_child(self) -> "_Child":
        if self._child is None:
            self._child = _Child(self.kernel, self.limits)
        return self._child


class _Child:
    def __init__(self, kernel: Kernel, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "pipeline.image_child", str(theirs.fileno())]
        # Modules as this process finds them, also in a Ray worker whose job brought its own.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        self._connection = Connection(ours.detach())
        self._sent = time.monotonic()
        try:
            self._guarded(lambda: self._connection.send((kernel, limits)))
            self.receive(_START_SECONDS)
        except _ImageFaultError as error:
            self.kill()
            raise ChildProcessError(
                f"the process that searches images did not start: {error.detail}"
            ) from error

    def send(self, request: tuple[str, bytes, str]) -> None:
        self._sent = time.monotonic()
        self._guarded(lambda: self._connection.send(request))

    def receive(self, seconds: float) -> Any:
        left = self._sent + seconds - time.monotonic()
        if not self._guarded(lambda: self._connection.poll(max(0.0, left))):
            raise _ImageFaultError("timeout", "no result within the time limit")
        reply = self._guarded(self._connection.recv)
        if isinstance(reply, MemoryError):
            raise _ImageFaultError("out_of_memory", "more memory needed than the limit")
        if isinstance(reply, Exception):
            raise reply
        return reply

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _guarded(self, use: Callable[[], Any]) -> Any:
        try:
            return use()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def _death(self) -> Exception:
        status = self._process.wait()
        if status >= 0:
            return _ImageFaultError("crashed", f"the process ended with status {status}")
        name = signal.Signals(-status).name
        if -status in _FROM_OUTSIDE:
            return ChildProcessError(f"the process that searched images was killed by {name}")
        return _ImageFaultError("crashed", f"the process was ended by {name}")


_shared: ImageProcess | None = None


def shared_process(kernel: Kernel, limits: Limits) -> ImageProcess:
    """This process's one `ImageProcess`, kept from shard to shard as long as both arguments stay the same."""
    global _shared
    if _shared is None or (_shared.kernel, _shared.limits) != (kernel, limits):
        if _shared is not None:
            _shared.close()
        _shared = ImageProcess(kernel, limits)
        atexit.register(_shared.close)
    return _shared
