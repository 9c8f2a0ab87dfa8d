"""The files below a folder or a URL, in the order of their paths, without holding them all."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sources.base import as_text
from pipeline.sources.runs import sorted_pairs
from proposals.errors import AlignDetError
from proposals.images import has_image_suffix
from proposals.paths import filesystem, is_folder, is_remote


@dataclass(frozen=True)
class Found:
    """path: below the root, with forward slashes; bytes that are not UTF-8 as ``\\xNN``. size: -1 for no file."""

    path: str
    size: int


def walk(root: Path, without: Path | None = None) -> Iterator[Found]:
    """Files below ``root`` in ascending order of ``path``, and folders that have the name of an image.

    Linked folders are followed once; one that lies below ``root`` is there by its own name alone, so that a link to it
    changes nothing. without: a local folder that is left out, by whichever link it is reached.
    Raises AlignDetError when a folder cannot be listed.
    """
    if is_remote(root):
        files, path = filesystem(str(root))
        yield from _walk_remote(files, path.rstrip("/"), "")
    else:
        yield from _walk_local(root, without)


def _walk_local(root: Path, without: Path | None) -> Iterator[Found]:
    seen: set[tuple[int, int]] = set()
    if without is not None:
        with suppress(OSError):  # a job's folder that is not there yet
            status = without.stat()
            seen.add((status.st_dev, status.st_ino))
    real = root.resolve()
    # A stack and no recursion: folders may lie a thousand deep.
    open_folders = [(str(root), "", _listed(str(root), seen))]
    while open_folders:
        folder, prefix, names = open_folders[-1]
        name, raw = next(names, ("", ""))
        if not name:
            open_folders.pop()
        elif name.endswith("/"):
            # A folder counts as "name/", so all that is in it comes where its path belongs.
            inner = f"{folder}/{raw}"
            if _leads_back(Path(inner), real):
                continue
            open_folders.append((inner, prefix + name, _listed(inner, seen)))
        else:
            yield Found(prefix + name, _local_size(f"{folder}/{raw}"))


def _leads_back(folder: Path, root: Path) -> bool:
    return folder.is_symlink() and folder.resolve().is_relative_to(root)


def _listed(folder: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """(name, the system's own spelling) of all that lies in ``folder``, nothing when it was ``seen``."""
    try:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            return iter(())
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as listing:
            return sorted_pairs(_local_names(listing))
    except OSError as error:
        raise AlignDetError(f"{folder} cannot be listed: {error.strerror}. Nothing was mined.") from error


def _local_names(listing: Iterator["os.DirEntry[str]"]) -> Iterator[tuple[str, str]]:
    for entry in listing:
        name = as_text(entry.name)
        if not is_folder(entry):
            yield name, entry.name
            continue
        yield f"{name}/", entry.name
        if has_image_suffix(name):
            yield name, entry.name


def _local_size(path: str) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116 - as above
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _walk_remote(files: Any, folder: str, prefix: str) -> Iterator[Found]:
    try:
        names = sorted_pairs(_remote_names(files, folder))
    except AlignDetError:
        raise
    except Exception as error:  # every backend has exceptions of its own
        raise AlignDetError(
            f"{files.unstrip_protocol(folder)} cannot be listed: {type(error).__name__}: {error}. Nothing was mined."
        ) from error
    for name, size in names:
        if name.endswith("/"):
            yield from _walk_remote(files, f"{folder}/{name[:-1]}", prefix + name)
        else:
            yield Found(prefix + name, int(size))


def _remote_names(files: Any, folder: str) -> Iterator[tuple[str, str]]:
    for info in files.ls(folder, detail=True):
        path, is_directory = info["name"], info["type"] == "directory"
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if path.rstrip("/") == folder or not name:
            if is_directory and path.endswith("/"):
                raise _doubled(files, path)
            continue  # the marker that some tools leave for an empty folder
        if is_directory:
            yield f"{name}/", ""
        else:
            yield name, str(-1 if info.get("size") is None else info["size"])


def _doubled(files: Any, folder: str) -> AlignDetError:
    # The name of such a folder is for fsspec that of the one it is in, so what it holds is never listed.
    place = f"{files.unstrip_protocol(folder.rstrip('/'))}//"
    return AlignDetError(
        f"names below {place} have an empty part between two slashes, and cannot be listed. Nothing was mined. "
        "Copy them to names without, or give a list of the images, with these as URLs."
    )
