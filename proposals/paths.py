"""Names that may be local paths or URLs: one way to tell them apart and to open them."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from proposals.errors import AlignDetError, BadUrlError, DeniedError, MissingExtraError

# What a URL may begin with. Never file:, nor anything that runs a program or chains filesystems.
SCHEMES = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "memory"})
_WEB = frozenset({"http", "https"})
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
# What pathlib makes of a URL.
_SQUEEZED = re.compile(r"^(" + "|".join(sorted(SCHEMES)) + r"):/(?!/)")
_EXTRAS = {"s3": "s3"}


def scheme_of(name: str) -> str | None:
    """The scheme of a URL in lower case, None for a local path."""
    found = _URL.match(name)
    return found[1].lower() if found else None


def is_web(name: str | Path) -> bool:
    """Whether ``name`` is on a web server, which shows no folders and may answer anything."""
    return scheme_of(str(name)) in _WEB


def as_path(name: str | Path) -> Path:
    """``name`` as a `Path`, or, for a URL, as an object that behaves like one (universal-pathlib).

    Raises AlignDetError when the scheme is not allowed, BadUrlError when the rest of the URL cannot be understood,
    MissingExtraError when its library is not installed.
    """
    text = _SQUEEZED.sub(r"\1://", str(name))
    scheme = scheme_of(text)
    if scheme is None:
        return Path(name)
    require_allowed(text)
    from upath import UPath

    try:
        path = UPath(text, **storage_options(scheme))
        _ = path.fs
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'aligndet[{extra}]'" if extra else f"pip install what it asks for: {error}"
        raise MissingExtraError(f"{text} needs a library that is not installed: {how}") from error
    except ValueError as error:
        raise BadUrlError(f"{text} cannot be understood as a URL: {error}. Correct it.") from error
    return cast(Path, path)


def is_there(path: Path) -> bool:
    """Whether ``path`` is a file; raises UnansweredError when its remote cannot be reached."""
    if not is_remote(path):
        return path.is_file()
    from proposals.remote_files import info_of  # which needs this module

    try:  # not path.is_file(): fsspec answers no when a store does not answer
        return bool(info_of(path)["type"] == "file")
    except FileNotFoundError:
        return False
    except DeniedError:
        # Of web servers many answer so for whatever is not there.
        if is_web(path):
            return False
        raise


def real_path(path: Path) -> Path:
    """``path`` without links, but for those that spare it a name which is not UTF-8 and no dataset could keep."""
    real = path.resolve()
    try:
        str(real).encode()
    except UnicodeEncodeError:
        if ".." in path.parts:
            return real  # behind a link ".." is not what the path says
        return Path(os.path.abspath(path))  # noqa: PTH100 - absolute() leaves ".." in it
    return real


def name_of(path: Path) -> str:
    """What the folder or URL ``path`` is called: a web server is not asked for a folder, which it need not show."""
    return str(path).rstrip("/").rpartition("/")[2] if is_remote(path) else path.resolve().name


class ForkSafePath:
    """A path, or in a forked process a new one to the same place: a filesystem's connections do not survive a fork."""

    def __init__(self, path: Path) -> None:
        self._path, self._process = path, os.getpid()

    @property
    def here(self) -> Path:
        """The path for this process."""
        if is_remote(self._path) and self._process != os.getpid():
            self._path, self._process = as_path(str(self._path)), os.getpid()
        return self._path


def is_remote(path: Path) -> bool:
    """Whether ``path``, from `as_path`, is a URL."""
    return not isinstance(path, Path)


def require_allowed(url: str) -> None:
    """Raise AlignDetError unless ``url`` has an allowed scheme and names one place only."""
    scheme = scheme_of(url)
    if scheme not in SCHEMES or "::" in url:
        raise AlignDetError(
            f"{url} is not allowed: a URL begins with one of {', '.join(sorted(SCHEMES))} and chains nothing."
        )


def storage_options(scheme: str) -> dict[str, Any]:
    """What a filesystem is opened with; credentials come from its own environment, never from here."""
    fresh: dict[str, Any] = {"use_listings_cache": False}  # others write there too, and a job must see it
    if scheme == "s3":
        return {**fresh, "default_block_size": 5 * 2**20}
    if scheme not in _WEB:
        return fresh
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=300, sock_connect=10, sock_read=30)
    return {**fresh, "client_kwargs": {"timeout": timeout}}


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of an allowed URL and the path in it; raises as `as_path` does."""
    path: Any = as_path(url)
    return path.fs, path.path


def walk_folders(root: Path, follow_links: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, names of folders in it, names of others) from ``root`` down: os.walk, for folders of any depth.

    os.walk calls itself until Python 3.12. Folders taken out of the list are not gone into.
    """
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        folders: list[str] = []
        others: list[str] = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                (folders if is_folder(entry) else others).append(entry.name)
        yield folder, folders, others
        inner = [f"{folder}/{name}" for name in reversed(folders)]
        waiting += [path for path in inner if follow_links or not Path(path).is_symlink()]


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether ``entry`` is a folder or a link to one; a link in a circle is none, and reading it gives the reason."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def local_only(path: Path, verb: str) -> Path:
    """``path``; raises AlignDetError when it is a URL, telling how to fetch it first."""
    path = as_path(path)
    if not is_remote(path):
        return path
    url = str(path).rstrip("/")
    copy = f"aws s3 sync {url} local/" if scheme_of(url) == "s3" else f"fetch {url} to local/"
    raise AlignDetError(f"`aligndet {verb}` works on a local folder. Download it first: {copy}")
