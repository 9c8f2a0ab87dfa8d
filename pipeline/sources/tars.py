"""The images inside WebDataset tars, each found by the bytes it has in its tar."""

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar

from pipeline.sources.base import Source, SourceEntry, as_text
from pipeline.sources.compressed import DECOMPRESS, HEAD, begins_compressed
from pipeline.sources.containers import listed
from proposals.errors import AlignDetError
from proposals.image_roots import ImageRoot, Kind
from proposals.images import is_listed
from proposals.tar_headers import TarHeaders

_AT_A_TIME = 2**16
# Names that links may point to; a hostile tar has as many as memory takes.
_LINK_TARGETS = 2**20


@dataclass(frozen=True)
class TarSource(Source):
    """Every member with the suffix of an image, tar after tar, in the order of its headers; plain tars only.

    tars: paths below ``root``. glob: only members whose name matches. Links to members before them are images of
    their own; a link to elsewhere, and a sparse member, are listed without bytes. A tar that cannot be read to its
    end, or that others were joined to, gives what comes before, and one entry more, which is rejected; a compressed one
    gives that alone.
    """

    kind: ClassVar[Kind] = "webdataset"
    root: str
    tars: tuple[str, ...]
    glob: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def images(self) -> ImageRoot:
        """See `Source`."""
        return ImageRoot(kind=self.kind, root=self.root)

    def entries(self) -> Iterator[SourceEntry]:
        """See `Source`. Listing reads headers: of a remote tar, about all of it when its images are small.

        Raises AlignDetError when a tar's place fails while it is listed, or its name could be that of another's image;
        and when all are compressed.
        """
        empty, compressed = True, list[str]()
        for tar in self.tars:
            self.images.require_told_apart(tar)
            for entry in listed(
                tar, self.images.locate(tar), partial(self._members, tar, compressed), mapped=False
            ):
                empty = False
                yield entry
        if len(compressed) == len(self.tars):
            raise AlignDetError(f"{self.images.locate(compressed[0])} is compressed. {DECOMPRESS}")
        if empty:
            raise AlignDetError(f"the {len(self.tars)} tars of {self.root or Path.cwd()} hold no image.")

    def _members(self, tar: str, compressed: list[str], stream: BinaryIO) -> Iterator[SourceEntry]:
        if begins_compressed(stream.read(HEAD)):
            compressed.append(tar)
            raise tarfile.ReadError("it is compressed")
        stream.seek(0)
        headers, places = TarHeaders(stream), dict[str, tuple[int, int]]()
        for member in headers:
            name = as_text(member.name)
            place = _place(member, places) if is_listed(name) else None
            if place is not None and self._wants(name):
                start, size = place
                yield SourceEntry(f"{tar}/{start}+{size}/{name.lstrip('/')}", size)
        _require_end(stream, headers.end)

    def _wants(self, name: str) -> bool:
        return self.glob is None or fnmatchcase(name, self.glob)


def _place(member: tarfile.TarInfo, places: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    """First byte and bytes of an image; none of them where the tar does not hold it in one piece, so that it is
    rejected. None for folders and devices.

    places: of the images before it, to which links may point, links to them among these.
    """
    if member.islnk() or member.issym():
        beside = posixpath.dirname(member.name) if member.issym() else ""
        target = posixpath.normpath(posixpath.join(beside, member.linkname))
        place = places.get(target, (member.offset_data, 0))
    elif member.isreg():
        place = (member.offset_data, 0 if member.issparse() else member.size)
    else:
        return None
    if len(places) < _LINK_TARGETS:
        places[posixpath.normpath(member.name)] = place
    return place


def _require_end(stream: BinaryIO, end: int) -> None:
    # At a damaged header tarfile stops as if that were the end, and at the end of the first of joined tars.
    stream.seek(end)
    rest = stream.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it has no end")
    while rest:
        if rest.strip(b"\0"):
            raise tarfile.ReadError("it goes on with something that is no member")
        rest = stream.read(_AT_A_TIME)
