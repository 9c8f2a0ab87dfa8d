"""The images inside WebDataset tars, each found by the bytes it has in its tar."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar

from pipeline.sources.base import Source, SourceEntry, as_text
from pipeline.sources.containers import listed
from pipeline.sources.walk import has_image_suffix
from proposals.errors import AlignDetError
from proposals.image_roots import ImageRoot, Kind
from proposals.tar_headers import TarHeaders


@dataclass(frozen=True)
class TarSource(Source):
    """Every member with the suffix of an image, tar after tar, in the order of its headers; plain tars only.

    tars: paths below ``root``. glob: only members whose name matches. A tar that cannot be read to its end gives
    what comes before, and one entry more, which is rejected.
    """

    kind: ClassVar[Kind] = "webdataset"
    root: str
    tars: tuple[str, ...]
    glob: str | None = None

    @property
    def images(self) -> ImageRoot:
        """See `Source`."""
        return ImageRoot(kind=self.kind, root=self.root)

    def entries(self) -> Iterator[SourceEntry]:
        """See `Source`. Listing reads headers: of a remote tar, about all of it when its images are small.

        Raises AlignDetError when a tar's place fails while it is listed.
        """
        empty = True
        for tar in self.tars:
            for entry in listed(tar, self.images.locate(tar), partial(self._members, tar)):
                empty = False
                yield entry
        if empty:
            raise AlignDetError(f"the {len(self.tars)} tars of {self.root or Path.cwd()} hold no image.")

    def _members(self, tar: str, stream: BinaryIO) -> Iterator[SourceEntry]:
        headers = TarHeaders(stream)
        for member in headers:
            name = as_text(member.name)
            if member.isreg() and not member.issparse() and self._wants(name):
                place = f"{member.offset_data}+{member.size}"
                yield SourceEntry(f"{tar}/{place}/{name.lstrip('/')}", member.size)
        _require_end(stream, headers.end)

    def _wants(self, name: str) -> bool:
        return has_image_suffix(name) and (self.glob is None or fnmatchcase(name, self.glob))


def _require_end(stream: BinaryIO, end: int) -> None:
    # At a damaged header tarfile stops as if that were the end.
    stream.seek(end)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it goes on with something that is no member")
