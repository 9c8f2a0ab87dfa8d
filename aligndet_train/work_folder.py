"""The folder a run writes into: made where it may be, and one run's alone."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aligndet_train.distributed import is_first
from proposals.errors import AlignDetError
from proposals.outputs import require_outside_datasets

_LOCK = ".lock"


@contextmanager
def alone_in(work_dir: Path, launcher: str = "none") -> Iterator[None]:
    """Create ``work_dir`` and, inside, let no other run into it; of several ranks the first holds it for all.

    The kernel lets go of a killed run's lock. File servers that cannot lock let all pass. Raises AlignDetError when
    another run is in there, when the folder cannot be made, and when it lies inside a dataset.
    """
    _make(work_dir)
    if not is_first(launcher):
        yield
        return
    descriptor = os.open(work_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, work_dir)
        yield
    finally:
        os.close(descriptor)


def _make(work_dir: Path) -> None:
    require_outside_datasets(work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlignDetError(
            f"{work_dir} cannot be a work folder: {error}. Choose another --work-dir"
        ) from error


def _lock(descriptor: int, work_dir: Path) -> None:
    # Not flock: workers that a killed run has forked would hold on to it for a while.
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
        raise AlignDetError(
            f"another run is at work in {work_dir} (process {holder}): wait for its end, stop it, or choose another "
            "--work-dir"
        ) from error
    except OSError:
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
