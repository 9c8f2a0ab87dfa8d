"""Shards of a remote dataset in a bounded local folder, shared by all workers and ranks of a node.

    CACHE/<hash of the dataset.json>/dataset.json, shards/00000.tar, shards/00000.parquet
    CACHE/locks/...

A file appears under its name only when it is whole and has the sha256 of dataset.json. Before a file is fetched, those
used longest ago go until it fits below the limit; files on their way are not counted. Who reads a shard holds its
lock, shared with other readers, and shards whose lock is held stay: many readers at a tight limit go above it a while.
"""

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

import pyarrow as pa

from proposals.dataset import ProposalDataset
from proposals.dataset.bounds import MAX_MANIFEST_BYTES, read_bounded
from proposals.dataset.files import fsync, write_atomically
from proposals.dataset.layout import MANIFEST, SHARDS
from proposals.dataset.manifest import FileEntry, ShardEntry
from proposals.dataset.reader import refuse_pointing_here
from proposals.errors import AlignDetError, DeniedError
from proposals.fetch import is_of_the_object
from proposals.paths import ForkSafePath, is_remote, is_there
from proposals.remote_files import pieces_of

Read = TypeVar("Read")
_OF_THE_CACHE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_CHUNK = 2**20
# Seconds before a store that did not answer is asked again.
_PAUSES = (1.0, 4.0, 16.0)
# Seconds without a byte: longer than any transfer pauses.
_ABANDONED_AFTER = 3600
_OF_DAMAGE = "Mine it again with --repair, or go on without its images with --damaged skip"


class DamagedShardError(AlignDetError):
    """A shard's file has not the bytes that dataset.json promises."""


class FetchFailedError(AlignDetError):
    """A shard could not be brought here, which says nothing of the dataset."""


class UnusableCacheError(FetchFailedError):
    """A shard cannot be stored here."""


class CacheSpec(NamedTuple):
    """folder: may be shared by processes, runs and datasets. limit: bytes of shards kept in it."""

    folder: Path
    limit: int


def cache_for(root: Path, folder: Path | None, gigabytes: float) -> CacheSpec | None:
    """The cache of a dataset at ``root``: in ``folder``, or without one, when ``root`` is a URL, in ~/.cache."""
    if folder is None and not is_remote(root):
        return None
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "aligndet" / "shards"
    return CacheSpec(folder or default, int(gigabytes * 1e9))


class ShardCache:
    """Fetches files of the dataset at ``root`` into ``spec.folder``, and evicts."""

    def __init__(self, root: Path, spec: CacheSpec) -> None:
        self._root, self.spec = ForkSafePath(root), spec
        self._threads = threading.local()
        manifest = read_bounded(root / MANIFEST, MAX_MANIFEST_BYTES)
        self.mirror = spec.folder / hashlib.sha256(manifest).hexdigest()[:16]
        self._locks = spec.folder / "locks"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            (self.mirror / SHARDS).mkdir(parents=True, exist_ok=True)
            write_atomically(self.mirror / MANIFEST, manifest)
        except OSError as error:
            raise AlignDetError(
                f"{spec.folder} cannot be a shard cache: {error}. Choose another --cache folder"
            ) from error

    @property
    def root(self) -> Path:
        """Where the dataset itself is."""
        return self._root.here

    def fetch(self, shard: ShardEntry) -> None:
        """See that the files of ``shard`` are in the mirror, and are the last to be evicted.

        Raises DamagedShardError when one is gone or has not the promised bytes, twice; UnusableCacheError when there is
        no room for them; FetchFailedError when the dataset's store does not answer.
        """
        if not self._there(shard):
            with self._locked(self._lock_of(shard), fcntl.LOCK_EX):
                self._complete(shard)

    @contextmanager
    def reading(self, shard: ShardEntry) -> Iterator[None]:
        """Inside, the files of ``shard`` are in the mirror and nobody evicts them. Raises as `fetch` does.

        A thread may read a shard while it reads the same shard.
        """
        if shard.name in self._held_by_this_thread():
            yield
            return
        with self._locked(self._lock_of(shard), fcntl.LOCK_SH):
            there = self._there(shard)
            if there:
                with self._holding(shard):
                    yield
        if not there:
            with self._locked(self._lock_of(shard), fcntl.LOCK_EX), self._holding(shard):
                self._complete(shard)
                yield

    @contextmanager
    def _holding(self, shard: ShardEntry) -> Iterator[None]:
        held = self._held_by_this_thread()
        held.add(shard.name)
        try:
            yield
        finally:
            held.discard(shard.name)

    def _held_by_this_thread(self) -> set[str]:
        return vars(self._threads).setdefault("held", set())  # type: ignore[no-any-return]

    def _there(self, shard: ShardEntry) -> bool:
        present = [_touched(self.mirror / entry.path, entry.bytes) for entry in shard.files]
        return all(present)

    def _complete(self, shard: ShardEntry) -> None:
        """Fetch what is missing; the caller holds the shard's lock."""
        for entry in shard.files:
            target = self.mirror / entry.path
            if not _touched(target, entry.bytes):
                self._evict(entry.bytes)
                self._download(entry, target)

    def _lock_of(self, shard: ShardEntry) -> str:
        return f"{self.mirror.name}-{shard.name}"

    def _download(self, entry: FileEntry, target: Path) -> None:
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            for _ in range(2):
                if self._copied_right(entry, temporary):
                    temporary.replace(target)
                    return
        finally:
            temporary.unlink(missing_ok=True)
        raise DamagedShardError(
            f"{self.root / entry.path} has not the bytes that {MANIFEST} promises: the dataset is damaged or was "
            f"changed. {_OF_DAMAGE}"
        )

    def _copied_right(self, entry: FileEntry, temporary: Path) -> bool:
        """Whether the bytes are the promised ones; a store that does not answer is asked four times."""
        source = self.root / entry.path
        for pause in (*_PAUSES, None):
            try:
                found = _copied(source, temporary, entry.bytes)
                # Or a power cut could leave the name without the content. Some disks are full only now.
                fsync(temporary)
                return found == (entry.bytes, entry.sha256)
            except Exception as error:  # every remote filesystem has exceptions of its own
                final = self._failure(error, source, temporary.parent)
                # Of what no second try would change nothing is a FetchFailedError alone.
                if (
                    pause is None
                    or type(final) is not FetchFailedError
                    or isinstance(error, PermissionError | DeniedError)
                ):
                    raise final from error
            time.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    def _failure(self, error: Exception, source: Path, folder: Path) -> AlignDetError:
        """What fetching ``source`` into ``folder`` is to raise for ``error``, and whose fault it is."""
        told = f"{source} could not be brought to {folder}: {error}"
        told += "" if told.endswith(("?", ".")) else "."
        if not folder.is_dir() or (isinstance(error, OSError) and error.errno in _OF_THE_CACHE):
            return UnusableCacheError(
                f"{told} Free some space, lower --cache-gb, or choose another --cache folder"
            )
        if isinstance(error, FileNotFoundError) and is_of_the_object(error) and self._is_there():
            return DamagedShardError(f"{source}, which {MANIFEST} names, is gone. {_OF_DAMAGE}")
        return FetchFailedError(f"{told} When it can be read again the same command goes on")

    def _is_there(self) -> bool:
        """Whether the dataset still is: a mount that is gone has lost all of its files."""
        with suppress(AlignDetError):
            return is_there(self.root / MANIFEST)
        return False

    def _evict(self, needed: int) -> None:
        """Make room for ``needed`` bytes, oldest use first; what somebody reads or fetches now stays."""
        with self._locked("evict", fcntl.LOCK_EX):
            _sweep(self.spec.folder)
            files = sorted(_usage(self.spec.folder))
            held = sum(size for _, size, _ in files)
            for _, size, path in files:
                if held + needed <= self.spec.limit:
                    return
                with suppress(BlockingIOError), self._locked(_lock_name(path), fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink(missing_ok=True)
                    held -= size

    @contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        # The kernel lets go of a killed process's lock.
        with self._lock_file(name) as file:
            fcntl.flock(file, kind)
            try:
                yield
            finally:
                # Closing alone would not do: a process forked meanwhile has the file open, too.
                fcntl.flock(file, fcntl.LOCK_UN)

    def _lock_file(self, name: str) -> TextIO:
        path = self._locks / name
        try:
            return path.open("a")
        except OSError as error:
            raise UnusableCacheError(
                f"{path} cannot be opened ({error.strerror}): choose another --cache folder, or make this one writable "
                "for all who use it"
            ) from error


class CachedDataset(ProposalDataset):
    """A ProposalDataset that reads its shards through a ShardCache."""

    def __init__(self, source: Path, spec: CacheSpec) -> None:
        self._cache_of_shards = ShardCache(source, spec)
        super().__init__(self._cache_of_shards.mirror)
        # Of the mirror, which is on this machine, that was not asked.
        refuse_pointing_here(source, self.manifest)
        largest = max((_size(shard) for shard in self._shards), default=0)
        if largest > spec.limit:
            raise AlignDetError(
                f"a shard of {source} has {largest:,} bytes, the cache may hold {spec.limit:,}: raise --cache-gb"
            )

    def __reduce__(self) -> tuple[type["CachedDataset"], tuple[Path, CacheSpec]]:  # type: ignore[override]
        return CachedDataset, (self._cache_of_shards.root, self._cache_of_shards.spec)

    def fetch(self, shard: int) -> None:
        """See that shard ``shard`` is there; see ShardCache."""
        self._cache_of_shards.fetch(self._shards[shard])

    def shard_table(self, shard: int) -> pa.Table:
        """As ProposalDataset's, fetching the shard first."""
        return self._present(shard, lambda: super(CachedDataset, self).shard_table(shard))

    def image_bytes(self, index: int) -> bytes:
        """As ProposalDataset's, fetching the shard first."""
        return self._present(self.locate(index)[0], lambda: super(CachedDataset, self).image_bytes(index))

    def _present(self, shard: int, read: Callable[[], Read]) -> Read:
        with self._cache_of_shards.reading(self._shards[shard]):
            return read()


class Prefetcher:
    """Fetches shards in the background: of a CachedDataset those it is told to expect."""

    def __init__(self, dataset: CachedDataset, threads: int = 2) -> None:
        self._dataset = dataset
        self._expected: deque[int] = deque()
        self._told = threading.Condition()
        for _ in range(threads):
            # Daemons: a process that ends does not wait for a transfer.
            threading.Thread(target=self._work, name="shard-prefetch", daemon=True).start()

    def expect(self, shards: Sequence[int]) -> None:
        """Begin to fetch ``shards``; what was expected before and is not begun is forgotten."""
        with self._told:
            self._expected = deque(shards)
            self._told.notify_all()

    def _work(self) -> None:
        while True:
            with self._told:
                self._told.wait_for(lambda: self._expected)
                shard = self._expected.popleft()
            # Who reads the shard meets the same error, and raises it where it is heard.
            with suppress(AlignDetError):
                self._dataset.fetch(shard)


def _size(shard: ShardEntry) -> int:
    return sum(entry.bytes for entry in shard.files)


def _lock_name(path: Path) -> str:
    return f"{path.parent.parent.name}-{path.stem}"


def _touched(path: Path, size: int) -> bool:
    """Whether ``path`` is there, of ``size`` bytes; if so it counts as used now, unless it is another user's."""
    try:
        with suppress(PermissionError):
            os.utime(path)
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _usage(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """(last use, bytes, path) of the shard files of all datasets in the cache."""
    for path in folder.glob(f"*/{SHARDS}/[0-9]*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        yield status.st_mtime_ns, status.st_size, path


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half fetched."""
    for path in folder.glob(f"*/{SHARDS}/.*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                path.unlink()


def _copied(source: Path, target: Path, expected: int) -> tuple[int, str]:
    """Copy, and say how many bytes with which sha256; a source that goes on beyond ``expected`` bytes is left there."""
    digest, size = hashlib.sha256(), 0
    with closing(_chunks(source)) as chunks, target.open("wb") as writer:
        while size <= expected and (chunk := next(chunks, b"")):
            digest.update(chunk)
            size += len(chunk)
            writer.write(chunk)
    return size, digest.hexdigest()


def _chunks(source: Path) -> Generator[bytes]:
    if is_remote(source):
        # Asked once: who copies asks again, and begins anew.
        yield from pieces_of(source, again=False)
        return
    with source.open("rb") as reader:
        while chunk := reader.read(_CHUNK):
            yield chunk
