"""Images are searched in a child process that may crash, hang or run out of memory without harm to its parent.

A worker keeps one child for all its images. An image that the child does not survive is tried once more in a fresh
one, so that neither a busy machine nor what earlier images left behind condemns it; then it is refused with its reason.
"""

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.image_records import Found, Kernel, Refusal
from pipeline.limits import Limits
from pipeline.module_folders import module_folders
from pipeline.shared_bytes import SharedBytes

DEPTH = 2  # one is searched, one waits
_ATTEMPTS = 2
_START_SECONDS = 600.0  # the first start on a machine may compile, or wait for another that does
# Nobody's image sends these: a scheduler, the kernel short of memory, or a person does.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Answer = tuple[Found | Refusal, dict[str, float]]
_Request = tuple[str, int, int, str]  # uri, slot, bytes in it, their sha256


class _ImageFaultError(Exception):
    """The child did not survive the image, or not in time."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class ImageProcess:
    """One child, replaced by a fresh one whenever it ends. Up to `DEPTH` images queue: `begin` some, `finish` in order.

    An image that was begun ahead is searched as soon as the one before it is done, without a turn of this process.
    """

    def __init__(self, kernel: Kernel, limits: Limits) -> None:
        self.kernel, self.limits = kernel, limits
        self._child: _Child | None = None
        self._slots = [SharedBytes() for _ in range(DEPTH)]
        self._begun: deque[_Request] = deque()
        self._number = 0

    def begin(self, uri: str, data: bytes, sha256: str) -> None:
        """Hand over one image. Returns at once, unless the child has to be started first."""
        if len(self._begun) == DEPTH:
            raise ValueError(f"{DEPTH} images are begun: finish one first")
        slot = self._number % DEPTH
        self._number += 1
        self._slots[slot].put(data)
        self._begun.append((uri, slot, len(data), sha256))
        try:
            self._hand_over()
        except (_ImageFaultError, ChildProcessError):
            self._end_child()  # a child that died idle says nothing about this image: `finish` starts another

    def finish(self) -> Answer:
        """(what the image that was begun first gave, its seconds per stage).

        Raises ChildProcessError when children are killed by something else than the image, or cannot start.
        """
        kills, faults = 0, 0
        while True:
            try:
                return self._answer()
            except ChildProcessError:
                self._end_child()
                kills += 1
                if kills == _ATTEMPTS:
                    raise
            except _ImageFaultError as fault:
                self._end_child()
                faults += 1
                if faults == _ATTEMPTS:
                    self._begun.popleft()
                    return Refusal.without_traceback("propose", fault.reason, fault.detail), {}

    def forget(self) -> None:
        """Drop the images that were begun and not finished: their answers are nobody's."""
        if self._begun:
            self.close()

    def close(self) -> None:
        """End the child, if there is one, and forget what it was given."""
        self._end_child()
        self._begun.clear()

    def _answer(self) -> Answer:
        child = self._child or self._fresh_child()
        answer: Answer = child.receive(self.limits.seconds)
        self._begun.popleft()
        return answer

    def _hand_over(self) -> None:
        if self._child is None:
            self._fresh_child()
        else:
            self._child.send(self._begun[-1])

    def _fresh_child(self) -> "_Child":
        self._child = _Child(self.kernel, self.limits, [slot.descriptor for slot in self._slots])
        for request in self._begun:
            self._child.send(request)
        return self._child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Child:
    def __init__(self, kernel: Kernel, limits: Limits, slots: list[int]) -> None:
        ours, theirs = socket.socketpair()
        descriptors = [theirs.fileno(), *slots]
        command = [sys.executable, "-P", "-m", "pipeline.image_child", *map(str, descriptors)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(module_folders())}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=descriptors, stdin=subprocess.DEVNULL, env=environment
            )
        self._connection = Connection(ours.detach())
        self._arrivals = select.poll()
        self._arrivals.register(self._connection, select.POLLIN)
        self._unanswered, self._since = 0, 0.0
        try:
            self.send((kernel, limits))
            self.receive(_START_SECONDS)
        except _ImageFaultError as error:
            self.kill()
            raise ChildProcessError(
                f"the process that searches images did not start: {error.detail}"
            ) from error

    def send(self, request: object) -> None:
        if self._unanswered == 0:
            self._since = time.monotonic()
        self._unanswered += 1
        self._guarded(lambda: self._connection.send(request))

    def receive(self, seconds: float) -> Any:
        """The next answer, within so many seconds of the answer before it or of the first request after that."""
        left = self._since + seconds - time.monotonic()
        if not self._arrivals.poll(max(0.0, 1000 * left)):
            raise _ImageFaultError("timeout", "no result within the time limit")
        reply = self._guarded(self._connection.recv)
        self._unanswered, self._since = self._unanswered - 1, time.monotonic()
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
    """This process's one `ImageProcess`, nothing begun; kept from shard to shard while both arguments stay the same."""
    global _shared
    if _shared is None or (_shared.kernel, _shared.limits) != (kernel, limits):
        if _shared is not None:
            _shared.close()
        _shared = ImageProcess(kernel, limits)
        atexit.register(_shared.close)
    _shared.forget()  # a shard that failed half-way left its images behind
    return _shared
