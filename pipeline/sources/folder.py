"""Image files of a local folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.sources.base import Source, SourceEntry
from proposals.errors import AlignDetError
from proposals.images import ImageRejected

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class FolderSource(Source):
    """Every image file below ``root``, recursively, sorted by path. Linked folders are followed once."""

    kind: ClassVar[str] = "folder"
    root: Path

    def entries(self) -> Iterator[SourceEntry]:
        """All images, sorted by uri. Whatever has an image suffix is listed, so that nothing is skipped silently.

        Raises AlignDetError when the folder is missing, cannot be listed, or holds no image.
        """
        if not self.root.is_dir():
            raise AlignDetError(f"{self.root} is not a folder. Give the folder that holds the images.")
        found = sorted(self._walk(), key=lambda entry: entry.uri)
        if not found:
            raise AlignDetError(f"{self.root} holds no image: no file ends in {', '.join(sorted(SUFFIXES))}.")
        yield from found

    def read(self, uri: str) -> bytes:
        """The bytes of one image; raises ImageRejected(stage "read")."""
        try:
            return (self.root / uri).read_bytes()
        except IsADirectoryError as error:
            raise ImageRejected("read", "is_a_directory", "a folder with the name of an image") from error
        except PermissionError as error:
            raise ImageRejected("read", "permission_denied", "the file may not be read") from error
        except FileNotFoundError as error:
            raise ImageRejected("read", "missing", "the file is gone, or a link to nowhere") from error

    def _walk(self) -> Iterator[SourceEntry]:
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(self.root, followlinks=True, onerror=_refuse):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            for name in (*folders, *files):
                if Path(name).suffix.lower() in SUFFIXES:
                    yield self._entry(Path(folder) / name)

    def _entry(self, path: Path) -> SourceEntry:
        uri = os.fsencode(path.relative_to(self.root).as_posix()).decode("utf-8", "backslashreplace")
        return SourceEntry(uri, path.stat().st_size if path.is_file() else -1)


def _refuse(error: OSError) -> None:
    raise AlignDetError(f"{error.filename} cannot be listed: {error.strerror}. Nothing was mined.") from error
