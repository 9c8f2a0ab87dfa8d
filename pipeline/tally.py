"""How far running shards are, told by their workers. A report that is lost harms nobody: commit records count."""

import json
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pipeline.shard_task import Count

_ASK_SECONDS = 1.0
_MAX_BYTES = 512


class Reports(Protocol):
    """A worker's end: travels with its task."""

    def send(self, shard: str, count: Count) -> None:
        """``shard`` has given so much by now. Returns at once."""


class Tally(Protocol):
    """The driver's end. A shard that is tried again overwrites its count, so nothing counts twice."""

    reports: Reports

    def counts(self, shards: set[str]) -> dict[str, Count]:
        """The last report of each of ``shards``; those of others are forgotten."""

    def close(self) -> None:
        """Stop listening."""


class SocketReports:
    """To a `SocketTally` on the same machine."""

    def __init__(self, path: str) -> None:
        self._path = path

    def send(self, shard: str, count: Count) -> None:
        """See `Reports`."""
        text = json.dumps([shard, count.images, count.proposals, count.rejected])
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto(text.encode(), self._path)


class SocketTally:
    """For workers on the driver's machine: a socket that only this user can write to. Costs no process."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="aligndet-")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._counts: dict[str, Count] = {}
        path = str(Path(self._folder) / "tally")
        try:
            self._socket.bind(path)
        except OSError:
            self.close()  # no live counts then, as in a folder with a name too long for a socket
        self.reports: Reports = SocketReports(path)

    def counts(self, shards: set[str]) -> dict[str, Count]:
        """See `Tally`."""
        with suppress(OSError):  # nothing more to read
            while True:
                shard, *numbers = json.loads(self._socket.recv(_MAX_BYTES))
                self._counts[shard] = Count(*numbers)
        self._counts = {name: count for name, count in self._counts.items() if name in shards}
        return self._counts

    def close(self) -> None:
        """See `Tally`."""
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class ActorReports:
    """To an `ActorTally`, from anywhere in the cluster."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def send(self, shard: str, count: Count) -> None:
        """See `Reports`."""
        self._actor.report.remote(shard, count)


class ActorTally:
    """For workers on other machines: a Ray actor, which takes about a hundredth of a core even when it idles."""

    def __init__(self, ray: Any) -> None:
        # Where the driver is: a machine that goes away must not take it along.
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._ray = ray
        self._actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Actor).remote()
        self._asked: Any = None
        self._ask_after = 0.0
        self._counts: dict[str, Count] = {}
        self.reports: Reports = ActorReports(self._actor)

    def counts(self, shards: set[str]) -> dict[str, Count]:
        """See `Tally`."""
        if self._asked is not None and self._ray.wait([self._asked], timeout=0)[0]:
            try:
                self._counts = self._ray.get(self._asked)
            except self._ray.exceptions.RayError:
                self._counts = {}  # the actor is being restarted
            self._asked = None
        if self._asked is None and time.monotonic() > self._ask_after:
            self._ask_after = time.monotonic() + _ASK_SECONDS
            self._asked = self._actor.keep.remote(shards)
        return {name: count for name, count in self._counts.items() if name in shards}

    def close(self) -> None:
        """See `Tally`."""


class _Actor:
    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}

    def report(self, shard: str, count: Count) -> None:
        self._counts[shard] = count

    def keep(self, shards: set[str]) -> dict[str, Count]:
        self._counts = {name: count for name, count in self._counts.items() if name in shards}
        return self._counts
