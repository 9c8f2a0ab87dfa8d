"""Where compiled kernels are kept, and who compiles them.

Kernels take half a minute to compile and a tenth of a second to load. They go to a directory of the user's own:
$ALIGNDET_CACHE_DIR, else $NUMBA_CACHE_DIR, else the platform's cache directory. If that cannot be written, what it
holds is copied to a directory in the system's temporary folder that belongs to this user alone (compiled code is
unpickled, so never read or copied from one that others can write to); if that fails too, every process compiles for
itself.

A name that hashes sources and versions keeps releases apart. One process compiles while the others wait on a lock;
once a marker says that everything is there, nobody locks.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llvmlite
import llvmlite.binding
import numba

_PACKAGE = Path(__file__).parent


@functools.cache
def directory() -> Path | None:
    """The writable directory of this release's kernels, created; None where nothing can be written."""
    home = _root() / _release()
    if _usable(home):
        return home
    refuge = _refuge() / _release()
    if not _usable(refuge):
        return None
    with contextlib.suppress(OSError):
        if _out_of_reach(home):
            _seed(home, refuge)
    return refuge


def is_warm() -> bool:
    """Whether every kernel has been compiled here for this processor."""
    home = directory()
    return home is not None and _marker(home).exists()


@contextlib.contextmanager
def one_compiler() -> Iterator[None]:
    """Hold the compile lock while kernels are imported, and leave the marker when they were."""
    home = directory()
    if home is None or _marker(home).exists():
        yield
        return
    with _locked(home / "lock"):
        yield
        with contextlib.suppress(OSError):
            _marker(home).touch()


@contextlib.contextmanager
def compile_lock() -> Iterator[None]:
    """Hold the compile lock, for kernels that the marker does not speak of: processes that import them at once would
    each compile them."""
    home = directory()
    with contextlib.nullcontext() if home is None else _locked(home / "lock"):
        yield


def _root() -> Path:
    chosen = os.environ.get("ALIGNDET_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/aligndet").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "aligndet" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aligndet"


def _refuge() -> Path:
    owner = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"aligndet-{owner}"


@functools.cache
def _release() -> str:
    digest = hashlib.sha256()
    for part in (numba.__version__, llvmlite.__version__, sys.version, platform.machine(), str(_PACKAGE)):
        digest.update(part.encode())
    for source in sorted(_PACKAGE.glob("*.py")):
        digest.update(source.read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}"


def _marker(home: Path) -> Path:
    features = llvmlite.binding.get_host_cpu_features().flatten()
    processor = hashlib.sha256(f"{llvmlite.binding.get_host_cpu_name()} {features}".encode()).hexdigest()[:12]
    return home / f"complete-{processor}"


def _usable(home: Path) -> bool:
    """Create the directory; whether it can be written and is out of other users' reach."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
        return _out_of_reach(home)
    except OSError:
        return False


def _out_of_reach(home: Path) -> bool:
    """Whether no other user can put files there: what lies there is unpickled."""
    return _is_private(home) and _is_private(home.parent)


def _is_private(path: Path) -> bool:
    status = path.stat()
    return not hasattr(os, "getuid") or (status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o002)


def _seed(home: Path, refuge: Path) -> None:
    """Copy a warm cache out of a read-only place, marker last."""
    if not _marker(home).exists() or _marker(refuge).exists():
        return
    with _locked(refuge / "lock"):
        shutil.copytree(home, refuge, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock", "complete-*"))
        _marker(refuge).touch()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock that dies with its process. Where the platform or file system has none, nobody waits."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            handle = stack.enter_context(path.open("w"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
