"""Writing files so that a crash leaves either the old state or the new one, never half of it.

On disk a file gets its name by a rename, once it is complete and flushed. In an object store (a path for which
`is_remote` holds) the put of the whole object is what the rename is on disk: an object is there whole or not at all.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from proposals.dataset.layout import TEMPORARY_MARK, is_temporary
from proposals.errors import AlignDetError, DeniedError
from proposals.fetch import read_part
from proposals.paths import is_remote, is_web
from proposals.remote_files import answered, info_of, open_remote, pieces_of

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotListedError(AlignDetError):
    """A web server that gives files by their names, and does not tell the names."""


def temporary_name(path: Path) -> Path:
    """A fresh name beside ``path``: two tasks writing the same shard never share a file."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex}")


@contextmanager
def temporary_beside(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary names for ``paths``, on local disk; whatever is left of them is removed at the end.

    An OSError of a full disk names their folder: of a write to an open file the system does not say where it was.
    """
    if any(is_remote(path) for path in paths):
        with tempfile.TemporaryDirectory(prefix="aligndet-") as scratch, _naming_when_full(scratch):
            yield tuple(Path(scratch) / path.name for path in paths)
        return
    names = tuple(temporary_name(path) for path in paths)
    try:
        with _naming_when_full(str(names[0].parent)):
            yield names
    finally:
        for name in names:
            name.unlink(missing_ok=True)


@contextmanager
def _naming_when_full(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = folder
        raise


def publish(temporary: Path, path: Path) -> None:
    """Flush ``temporary`` to disk and give it its final name, or put it as an object: atomically."""
    publish_all({temporary: path})


def publish_all(names: dict[Path, Path]) -> None:
    """`publish` each temporary file of one folder under its name, in order, with one flush of the folder."""
    local = {temporary: path for temporary, path in names.items() if not is_remote(path)}
    for temporary, path in names.items():
        if temporary not in local:
            with as_os_errors(path) as (store, name):
                store.put_file(str(temporary), name)
            temporary.unlink()
    for temporary in local:
        fsync(temporary)
    for temporary, path in local.items():
        temporary.replace(path)
    for folder in {path.parent for path in local.values()}:
        fsync(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: readers see the old content or all of the new. Raises OSError."""
    if is_remote(path):
        with as_os_errors(path) as (store, name):
            store.pipe_file(name, data)
        return
    with temporary_beside(path) as (temporary,):
        temporary.write_bytes(data)
        publish(temporary, path)


def copy_atomically(source: Path, path: Path) -> None:
    """Copy the content of the file ``source`` to ``path``: readers see the old content or all of the new."""
    with temporary_beside(path) as (temporary,):
        with source.open("rb") as content, temporary.open("wb") as copy:
            shutil.copyfileobj(content, copy, 2**20)
        publish(temporary, path)


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Of two processes of one machine, or of one file server that can, one after the other.

    path: an existing file or folder, which is only locked. Remote ones, and file servers that cannot, let all pass;
    NFS locks a folder for each machine apart.
    """
    if is_remote(path):
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path, expected: int | None = None) -> str:
    """The hex sha256 of a file's content; of a remote one it raises as `info_of` does.

    expected: bytes; a remote file that goes on behind them is left there, and has another sha256 anyway.
    """
    if is_remote(path):
        digest, size = hashlib.sha256(), 0
        for piece in pieces_of(path):
            digest.update(piece)
            size += len(piece)
            if expected is not None and size > expected:
                break
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_plain(path: Path) -> BinaryIO:
    """A local file, to read; raises OSError at once for a pipe or a device, which others would wait for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no plain file", str(path))


@contextmanager
def open_any(path: Path, most: int | None = None) -> Iterator[BinaryIO]:
    """A local plain file or a remote one, to read at any place; raises as `read_range` does. most: see open_remote."""
    if is_remote(path):
        with open_remote(path, most) as stream:
            yield stream
        return
    with open_plain(path) as stream:
        yield stream


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Up to ``size`` bytes of a file from ``offset`` on, fewer at its end.

    Raises OSError when it cannot be read, UnansweredError where that is because its remote does not answer.
    """
    if is_remote(path):
        remote: Any = path
        return answered(path, lambda: read_part(remote.fs, remote.path, str(path), offset, size))
    # A descriptor per read: nothing to share, so nothing to get wrong in threads, forks and pickles.
    with open_plain(path) as stream:
        data = os.pread(stream.fileno(), size, offset)
        while len(data) < size and (more := os.pread(stream.fileno(), size - len(data), offset + len(data))):
            data += more
        return data


def size_of(path: Path) -> int | None:
    """The bytes of a plain file, local or remote; None where there is none, or its server does not say.

    Raises DeniedError and UnansweredError as `info_of` does.
    """
    if is_remote(path):
        with suppress(FileNotFoundError):
            size: int | None = info_of(path)["size"]
            return size
        return None
    with suppress(OSError):
        status = path.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None


def files_below(root: Path) -> Iterator[str]:
    """The paths below a remote ``root`` of all its objects, in order, but for markers of folders.

    Raises NotListedError where a web server does not show what is in ``root``, else as `info_of` does.
    """
    remote: Any = root
    if is_web(root) and not _shown(remote):
        raise _not_listed(root)
    name = remote.path
    found = answered(root, lambda: dict(remote.fs.find(name, detail=True)))
    paths = sorted(path for path, info in found.items() if not _is_marker(info))
    yield from (path.removeprefix(name).lstrip("/") for path in paths)


def paths_in(root: Path, folder: str) -> list[str]:
    """Below ``root``, the paths of all that lies in its ``folder`` and is no folder itself, in order.

    Empty where a web server does not show them.
    """
    if is_remote(root):
        try:
            return [f"{folder}/{path}" for path in files_below(root / folder)]
        except NotListedError:
            return []
    found = (path for path in (root / folder).rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(root).as_posix() for path in found)


def names_in(folder: Path) -> list[str]:
    """The names of all that lies directly in ``folder``, local or remote, but for markers of folders."""
    if not is_remote(folder):
        return [path.name for path in folder.iterdir()]
    with as_os_errors(folder) as (store, name):
        found = store.ls(name, detail=True)
    return [info["name"].rstrip("/").rsplit("/", 1)[-1] for info in found if not _is_marker(info)]


def _is_marker(info: dict[str, Any]) -> bool:
    # The object of no bytes that S3's console and other tools leave for a folder.
    return info["type"] == "file" and info["name"].endswith("/") and not info.get("size")


def make_folder(path: Path) -> None:
    """Make the folder ``path`` unless it is there; an object store needs none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def sizes_in(folder: Path) -> dict[str, int]:
    """The size in bytes of every file directly in ``folder``, by name; empty when there is no such folder.

    Raises NotListedError where a web server shows neither ``folder`` nor what it is in.
    """
    if is_remote(folder):
        found = _shown(folder)
        if not found and is_web(folder) and not _shown(folder.parent):
            raise _not_listed(folder.parent)
        return {info["name"].rsplit("/", 1)[-1]: info["size"] for info in found if info["type"] == "file"}
    if not folder.is_dir():
        return {}
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a worker has renamed it meanwhile
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def _shown(folder: Any) -> list[dict[str, Any]]:
    """What is directly in a remote ``folder``; nothing where it is not there, or a web server does not show it."""
    try:
        return answered(folder, lambda: list(folder.fs.ls(folder.path, detail=True)))
    except FileNotFoundError:
        return []
    except DeniedError:
        if is_web(folder):
            return []
        raise


def _not_listed(folder: Path) -> NotListedError:
    return NotListedError(
        f"the server of {folder} does not list what is in a folder. Look where its files are."
    )


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with as_os_errors(path) as (store, name):
        if store.exists(name):
            store.rm(name, recursive=True)


def remove_leftovers(
    folder: Path, keep: str = "", of: tuple[str, ...] = ("",), *, untouched_for: float = 0
) -> int:
    """Delete temporary files and folders of tasks that died, but ``keep``; returns how many there were.

    of: what these were to become; all by default. untouched_for: seconds; what was written since is left.
    """
    there = (path for path in folder.glob(f"*{TEMPORARY_MARK}*") if is_temporary(path.name))
    leftovers = [path for path in there if path.name != keep and path.name.startswith(of)]
    if untouched_for:
        leftovers = [path for path in leftovers if time.time() - path.stat().st_mtime > untouched_for]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


@contextmanager
def as_os_errors(path: Any) -> Iterator[tuple[Any, str]]:
    """(filesystem, name in it) of a remote path. What its backend raises comes out as an OSError, to be retried."""
    try:
        yield path.fs, path.path
    except (OSError, AlignDetError):
        raise
    except Exception as error:
        raise OSError(f"{path}: {type(error).__name__}: {error}") from error
