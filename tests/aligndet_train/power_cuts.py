"""What a power cut may leave of a file, written down, as none can be had here."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Flushed = dict[tuple[int, int], bytes]


def files_named_before_flushed(
    patch: pytest.MonkeyPatch, look: Callable[[], None] = lambda: None
) -> list[Path]:
    """The files that from now on get their names with other bytes than they had when they were last flushed.

    look: called whenever a file is about to get its name, or a second one.
    """
    flushed: Flushed = {}
    found: list[Path] = []

    def fsync(descriptor: int, ask: Callable[[int], None] = os.fsync) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        if path.is_file():
            flushed[_inode(path)] = path.read_bytes()
        ask(descriptor)

    def replace(source: Path, target: Path, ask: Callable[[Path, Path], None] = os.replace) -> None:
        look()
        if flushed.get(_inode(source)) != Path(source).read_bytes():
            found.append(Path(target))
        ask(source, target)

    patch.setattr(os, "fsync", fsync)
    patch.setattr(os, "replace", replace)
    return found


def _inode(path: Path) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino
