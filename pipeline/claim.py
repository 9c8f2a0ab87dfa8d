"""One run at a time in an output folder: the heartbeat of another one that still lives is respected."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.heartbeat import (
    BEAT_SECONDS,
    SILENCE_SECONDS,
    age_of,
    is_ours,
    read_heartbeat,
    remove_beat,
    this_process,
    write_beat,
)
from proposals.dataset.files import alone_with
from proposals.errors import AlignDetError

_LOOK_SECONDS = BEAT_SECONDS / 2
# No two machines' clocks are further apart.
_CLOCKS_APART = 3600.0

Say = Callable[[str], None]


@contextmanager
def claimed(out: Path, say: Say) -> Iterator[None]:
    """Make ``out`` this process's own before the block; given back when the block raises, else by `release`.

    Where the last beat of a run elsewhere is fresh, this waits until it is followed by another, or too old. Raises
    AlignDetError when another run lives. No lock: what a store or a cut line lets pass, `commit` finds.
    """
    last = _after_silence(out, say)
    with alone_with(out):
        if read_heartbeat(out) not in (None, last):
            raise _taken(out, read_heartbeat(out))
        now = time.time()
        write_beat(out, {**this_process(), "started": now, "updated": now})
    found = read_heartbeat(out)
    if found is not None and found != last and not is_ours(found):
        raise _taken(out, found)
    try:
        yield
    except BaseException:
        release(out)
        raise


def release(out: Path) -> None:
    """Remove this process's heartbeat, or that of a run which died after its last shard."""
    found = read_heartbeat(out)
    if found is not None and (is_ours(found) or _is_dead(found)):
        remove_beat(out)


def _after_silence(out: Path, say: Say) -> dict[str, Any] | None:
    """The beat that ``out`` has when nobody else can be alive there."""
    first = read_heartbeat(out)
    if first is None or is_ours(first) or _is_dead(first):
        return first
    # What its clock says is not trusted alone: one that is a little behind ours must still be seen to beat.
    left = SILENCE_SECONDS - age_of(first)
    seconds = min(max(left, 3 * BEAT_SECONDS), SILENCE_SECONDS) if left > 0 else SILENCE_SECONDS
    say(f"{_who(first)} may still write to {out}: waiting up to {seconds:.0f} s to see whether it still runs")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        found = read_heartbeat(out)
        if found is None:
            return None
        if found != first:
            raise _taken(out, found)
    return first


def _is_dead(beat: dict[str, Any]) -> bool:
    here = this_process()
    if age_of(beat) > (SILENCE_SECONDS if beat.get("host") == here["host"] else _CLOCKS_APART):
        return True
    pid = beat.get("pid")
    # A process id means something only among those that this process can see.
    if not isinstance(pid, int) or any(beat.get(name) != here[name] for name in ("host", "space")):
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except OSError:
        return True
    return False


def _who(beat: dict[str, Any] | None) -> str:
    return f"process {beat.get('pid')} on {beat.get('host')}" if beat else "another process"


def _taken(out: Path, beat: dict[str, Any] | None) -> AlignDetError:
    return AlignDetError(
        f"another run writes to {out}: {_who(beat)}. Let it finish, or end it; then run the same command again."
    )


def taken_over(out: Path) -> AlignDetError:
    """What a run raises that finds in ``out`` what another one has written meanwhile."""
    return AlignDetError(
        f"another run took over {out} meanwhile, so this one committed nothing. Let that run finish, or end it; "
        "then run the same command again."
    )
