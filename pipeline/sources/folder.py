"""Image files below a folder, local or a URL."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

from pipeline.sources.base import Source, SourceEntry
from pipeline.sources.walk import walk
from proposals.errors import AlignDetError
from proposals.image_roots import ImageRoot, Kind
from proposals.images import IMAGE_SUFFIXES, is_listed
from proposals.paths import is_remote


@dataclass(frozen=True)
class FolderSource(Source):
    """Every image file below ``root``, recursively, sorted by path. Linked folders are followed once.

    glob: only paths below ``root`` that match it; ``*`` also matches slashes.
    """

    kind: ClassVar[Kind] = "folder"
    root: Path
    glob: str | None = None

    @property
    def images(self) -> ImageRoot:
        """See `Source`."""
        return ImageRoot(kind=self.kind, root=str(self.root))

    def entries(self) -> Iterator[SourceEntry]:
        """All images, sorted by uri. Whatever has an image suffix is listed, so that nothing is skipped silently.

        Raises AlignDetError when the folder is missing, cannot be listed, or holds no image.
        """
        if not is_remote(self.root) and not self.root.is_dir():
            raise AlignDetError(f"{self.root} is not a folder. Give the folder that holds the images.")
        empty = True
        for found in walk(self.root):
            if is_listed(found.path) and (self.glob is None or fnmatchcase(found.path, self.glob)):
                empty = False
                yield SourceEntry(found.path, found.size)
        if empty:
            what = (
                f"that matches {self.glob}"
                if self.glob
                else f": no file ends in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
            raise AlignDetError(f"{self.root} holds no image{' ' if self.glob else ''}{what}.")
