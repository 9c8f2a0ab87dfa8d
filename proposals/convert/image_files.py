"""Which file below a folder an entry of a proposal file means."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from proposals.errors import AlignDetError


class ImageFiles:
    """The files below ``folder``, links followed as mining does. Raises AlignDetError when it is no folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise AlignDetError(f"{folder} is no folder of images. Name it: --images FOLDER")
        self.folder, self._own_name = folder, folder.resolve().name
        self._paths: dict[str, Path] = {}
        # None where several files, links to one being one, have that name or stem.
        self._names: dict[str, Path | None] = {}
        self._stems: dict[str, Path | None] = {}
        for path in _files(folder):
            uri = _spelled(os.fsencode(path.relative_to(folder).as_posix()))
            self._paths[uri] = path
            _note(self._names, PurePosixPath(uri).name, path)
            _note(self._stems, PurePosixPath(uri).stem, path)

    def place(self, entries: Sequence[str]) -> list[tuple[str, Path | None]]:
        """For each entry the uri of its image and the file, None where there is none or several could be meant.

        The file at that very path below the folder or beside it (mmdet's names begin with the folder's own), or else
        the only one of that name, or else the only one of that stem (SoCo writes nothing else); of the latter two
        none that another entry names by its path. Raises AlignDetError when two entries mean one image, naming both.
        """
        exact = {uri for entry in entries if (uri := self._exact(_normal(entry))) is not None}
        placed: list[tuple[str, Path | None]] = []
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
        return next((path for path in (uri, below) if path in self._paths), None)

    def _find(self, uri: str, exact: set[str]) -> tuple[str, Path | None]:
        if (there := self._exact(uri)) is not None:
            return there, self._paths[there]
        name = PurePosixPath(uri).name
        path = self._names[name] if name in self._names else self._stems.get(name)
        if path is not None:
            found = _spelled(os.fsencode(path.relative_to(self.folder).as_posix()))
            if found not in exact:
                return found, path
        return uri, None


def _files(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for inner, folders, files in os.walk(folder, followlinks=True):
        status = Path(inner).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (path for name in sorted(files) if (path := Path(inner, name)).is_file())


def _note(known: dict[str, Path | None], name: str, path: Path) -> None:
    other = known.get(name, path)
    known[name] = path if other is path or (other is not None and other.samefile(path)) else None


def _normal(entry: str) -> str:
    return PurePosixPath(_spelled(entry.encode("utf-8", "surrogatepass"))).as_posix()


def _spelled(name: bytes) -> str:
    """A file name as text that UTF-8 can hold, as mining spells it."""
    return name.decode("utf-8", "backslashreplace")
