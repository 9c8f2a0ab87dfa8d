"""Writing files so that a crash leaves either the old state or the new one, never half of it."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proposals.dataset.layout import TEMPORARY_MARK


def temporary_name(path: Path) -> Path:
    """A fresh name beside ``path``: two tasks writing the same shard never share a file."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex}")


@contextmanager
def temporary_beside(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary names for ``paths``; whatever is left of them is removed at the end."""
    names = tuple(temporary_name(path) for path in paths)
    try:
        yield names
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Flush ``temporary`` to disk and give it its final name, atomically."""
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: readers see the old content or all of the new."""
    with temporary_beside(path) as (temporary,):
        temporary.write_bytes(data)
        publish(temporary, path)


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files and folders of tasks that died; returns how many there were."""
    leftovers = list(folder.glob(f"*{TEMPORARY_MARK}*"))
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)
