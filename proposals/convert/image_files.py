"""Which file below a folder an entry of a proposal file means."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from proposals.dataset import layout
from proposals.errors import AlignDetError
from proposals.image_roots import shortened
from proposals.paths import walk_folders

# What comes before a member's own path in the uri of an image that was mined from a tar: the tar, its place in it.
_IN_A_TAR = re.compile(r"^.*?/[0-9]+\+[0-9]+/")


class ImageFiles:
    """The files below ``folder``, links followed as mining does. Raises AlignDetError when it is no folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise AlignDetError(f"{folder} is no folder of images. Name it: --images FOLDER")
        self.folder, self._own_name = folder, folder.resolve().name
        # By uri, the path below the folder: strings, since a million Path objects take most of a gigabyte.
        self._paths: dict[str, str] = {}
        # By name and by stem, the uri: None where several files, links to one being one, have it.
        self._names: dict[str, str | None] = {}
        self._stems: dict[str, str | None] = {}
        # By key, the uri of what a dataset's tars were unpacked to.
        self._keys: dict[str, str] = {}
        for path in _files(folder):
            uri = _spelled(os.fsencode(path))
            self._paths[uri] = uri if uri == path else path
            self._note(self._names, PurePosixPath(uri).name, uri)
            self._note(self._stems, stem := PurePosixPath(uri).stem, uri)
            if layout.is_key(stem) and layout.is_image_member(uri):
                self._keys[stem] = uri

    def place(self, entries: Sequence[str]) -> list[tuple[str, str | None]]:
        """For each entry the uri of its image and the path below the folder; None: no file, or several, could be meant.

        The file at that very path below the folder or beside it (mmdet's names begin with the folder's own), or that a
        dataset's tar has it under, or at its path in the tar that it was mined from; or else the only one of that
        name, or else the only one of that stem (SoCo writes nothing else); of the latter two none that another entry
        names by its path. Raises AlignDetError when two entries mean one image, naming both.
        """
        exact = {uri for entry in entries if (uri := self._exact(_normal(entry))) is not None}
        placed: list[tuple[str, str | None]] = []
        meant: dict[str, str] = {}
        for entry in entries:
            uri, path = self._find(_normal(entry), exact)
            if uri in meant:
                raise AlignDetError(
                    f"two entries are one image, {uri} below {self.folder}: {meant[uri]!r} and {entry!r}. A dataset "
                    "holds an image once: delete one entry, or tell them apart by the images' paths."
                )
            meant[uri] = entry
            placed.append((uri, path))
        return placed

    def _exact(self, uri: str) -> str | None:
        below = uri.removeprefix(f"{self._own_name}/")
        key = self._keys.get(layout.key_of(uri)) if self._keys else None
        names = (uri, below, key, _IN_A_TAR.sub("", uri))
        found = next((name for name in names if name in self._paths), None)
        return self._paths[found] if found is not None and self._paths[found] == found else found

    def _find(self, uri: str, exact: set[str]) -> tuple[str, str | None]:
        if (there := self._exact(uri)) is not None:
            return there, self._paths[there]
        name = PurePosixPath(uri).name
        found = self._names[name] if name in self._names else self._stems.get(name)
        if found is None or found in exact:
            return shortened(uri), None
        return found, self._paths[found]

    def _note(self, known: dict[str, str | None], name: str, uri: str) -> None:
        other = known.get(name, uri)
        known[name] = uri if other is uri or (other is not None and self._is_one(other, uri)) else None

    def _is_one(self, one: str, other: str) -> bool:
        return (self.folder / self._paths[one]).samefile(self.folder / self._paths[other])


def _files(folder: Path) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for inner, folders, files in walk_folders(folder, follow_links=True):
        status = Path(inner).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        below = PurePosixPath(inner).relative_to(folder)
        yield from ((below / name).as_posix() for name in sorted(files) if _is_file(Path(inner, name)))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for one call
        return False


def _normal(entry: str) -> str:
    return PurePosixPath(_spelled(entry.encode("utf-8", "surrogatepass"))).as_posix()


def _spelled(name: bytes) -> str:
    """A file name as text that UTF-8 can hold, as mining spells it."""
    return name.decode("utf-8", "backslashreplace")
