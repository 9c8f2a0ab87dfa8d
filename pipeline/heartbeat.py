"""The driver's sign of life: a small file beside the dataset, gone when the job is. Not part of the dataset."""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Any

from pipeline.shard_task import Count
from proposals.dataset.files import alone_with, write_atomically
from proposals.dataset.layout import HEARTBEAT

if TYPE_CHECKING:
    from pipeline.scheduler import Scheduler

BEAT_SECONDS = 2.0
# A driver that pauses longer than this is taken for dead.
SILENCE_SECONDS = 15 * BEAT_SECONDS
_NAMED = 1000
_PACE_BEATS = 60  # images per second are those of the last two minutes


class Heartbeat:
    """Writes the file every two seconds; `pipeline.claim` writes the first one and removes it.

    Losing a beat harms nobody, so neither a full disk nor whatever a store's client raises is an error.
    """

    def __init__(self, out: Path, resumed: Count) -> None:
        self._out, self._last = out, 0.0
        self._started = time.time()
        self._pace: deque[tuple[float, int]] = deque([(time.monotonic(), _done(resumed))], maxlen=_PACE_BEATS)

    def beat(self, count: Count, scheduler: "Scheduler") -> None:
        """Write what is done by now, unless that was just written."""
        if time.monotonic() - self._last < BEAT_SECONDS:
            return
        self._last = time.monotonic()
        self._pace.append((self._last, _done(count)))
        content = {
            **this_process(),
            "started": self._started,
            "updated": time.time(),
            "images": count.images,
            "proposals": count.proposals,
            "rejected": count.rejected,
            "rate": self._rate(),
            "running": [task.name for task in scheduler.running[:_NAMED]],
            "in_flight": len(scheduler.running),
            "failed": dict(list(scheduler.failures.items())[:_NAMED]),
            "retries": scheduler.retries,
            "reissued": scheduler.reissued,
        }
        write_beat(self._out, content)

    def _rate(self) -> float:
        (since, before), (now, done) = self._pace[0], self._pace[-1]
        return (done - before) / max(now - since, 1e-6)


def _done(count: Count) -> int:
    return count.images + count.rejected


_beating = RLock()


@contextmanager
def kept_alive(out: Path) -> Iterator[None]:
    """Within the block this process's last beat in ``out`` does not grow old, whatever else the process waits for.

    Opening a folder of many shards, starting Ray and committing each may take minutes without a `Heartbeat.beat`.
    """
    over = Event()
    Thread(target=_keep_alive, args=(out, over), daemon=True, name="aligndet-heartbeat").start()
    try:
        yield
    finally:
        over.set()


def _keep_alive(out: Path, over: Event) -> None:
    while not over.wait(BEAT_SECONDS):
        # In the order in which `claim.claimed` takes them, or each could wait for the other.
        with suppress(OSError), alone_with(out), _beating:
            found = read_heartbeat(out)
            if found is not None and is_ours(found) and age_of(found) > BEAT_SECONDS:
                write_beat(out, {**found, "updated": time.time()})


def remove_beat(out: Path) -> None:
    """Remove the last beat of ``out``; nothing of this process writes it again by itself."""
    with _beating, suppress(Exception):
        (out / HEARTBEAT).unlink()


def write_beat(out: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as the last beat of ``out``; whatever forbids it will forbid the first shard, too."""
    with suppress(Exception), _beating:
        write_atomically(out / HEARTBEAT, json.dumps(content).encode())


def this_process() -> dict[str, Any]:
    """Which process this is: host, pid, and the space in which the pid means something (containers have their own)."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return {"host": socket.gethostname(), "space": space, "pid": os.getpid()}


def is_ours(beat: dict[str, Any]) -> bool:
    """Whether ``beat`` is of this process."""
    return all(beat.get(name) == value for name, value in this_process().items())


def age_of(beat: dict[str, Any]) -> float:
    """Seconds since ``beat`` by this machine's clock; infinite when it does not say."""
    updated = beat.get("updated")
    return time.time() - updated if isinstance(updated, int | float) else float("inf")


def read_heartbeat(out: Path) -> dict[str, Any] | None:
    """The last beat of the driver that mines into ``out``; None when there is none, or it cannot be read."""
    try:
        content = json.loads((out / HEARTBEAT).read_bytes())
    except Exception:  # every store has exceptions of its own for a file that is not there
        return None
    return content if isinstance(content, dict) else None
