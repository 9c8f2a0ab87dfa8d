"""The members of one shard's tar: exactly an image and its annotation per row, in order, and nothing else."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image

from proposals.dataset import layout
from proposals.dataset.bounds import MAX_RECORD_BYTES
from proposals.dataset.files import open_any, read_range
from proposals.dataset.tables import box_offsets, flat_boxes, flat_ranks
from proposals.dataset.writer import member_header
from proposals.fetch import MAX_IMAGE_BYTES
from proposals.orientation import FIRST_ON_ITS_SIDE, exif_orientation
from proposals.png_checksums import has_sound_checksums
from proposals.tar_headers import TarHeaders

_PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class _Member:
    """A member as tarfile resolves it, and the byte where what came before it ends: there its header must be."""

    info: tarfile.TarInfo
    begin: int

    def header_faults(self, stream: BinaryIO) -> Iterator[str]:
        """Other readers may go by the plain header alone, where tarfile goes by an extended one before it."""
        stream.seek(self.begin)
        if stream.read(tarfile.BLOCKSIZE) == _header(self.info.name, self.info.size):
            return
        if (self.info.mtime, self.info.uid, self.info.gid, self.info.mode) != (0, 0, 0, 0o644):
            yield f"member {self.info.name!r} has another time, owner or mode than the format fixes"
        else:
            yield f"member {self.info.name!r} has another header than the format fixes, at byte {self.begin}"

    def read(self, stream: BinaryIO, most: int) -> bytes:
        """Its content, at most so many bytes of it."""
        stream.seek(self.info.offset_data)
        return stream.read(min(self.info.size, most))

    def padding_faults(self, stream: BinaryIO) -> Iterator[str]:
        """Whether there is anything between its content and the next header."""
        end = self.info.offset_data + self.info.size
        stream.seek(end)
        if stream.read(-end % tarfile.BLOCKSIZE).strip(b"\0"):
            yield f"holds something behind member {self.info.name!r}, at byte {end}"


def tar_faults(path: Path, table: pa.Table) -> Iterator[str]:
    """How the tar differs from the table of its shard (from `read_shard`); reads every byte of it once."""
    try:
        with open_any(path) as stream:
            headers = TarHeaders(stream)
            members = list(headers)
            yield from _name_faults(members)
            wanted = [name for row in _rows(table) for name in _member_names(row)]
            if [member.name for member in members] != wanted:
                yield from _order_faults([member.name for member in members], wanted)
            found = {each.info.name: each for each in _placed(members) if each.info.isreg()}
            for row in _rows(table):
                yield from _row_faults(stream, found, row, table)
            yield from _end_faults(stream, headers.end)
    except (OSError, tarfile.TarError) as error:
        yield f"is no sound tar: {error}"


def edge_faults(path: Path, table: pa.Table) -> Iterator[str]:
    """Whether the first and the last image of a shard are where its table says, by their tar headers alone."""
    rows = table.select(("key", "uri", "tar_offset", "tar_size"))
    first, last = rows.slice(0, 1).to_pylist(), rows.slice(len(rows) - 1).to_pylist()
    if first[0]["tar_offset"] != tarfile.BLOCKSIZE:
        yield f"does not begin with the image of {first[0]['uri']!r}, by the table"
    for row in (*first, *last):
        header = read_range(path, row["tar_offset"] - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        if header != _header(_member_names(row)[0], row["tar_size"]):
            yield f"holds no image of {row['uri']!r} where the table says: it is another shard's, or damaged"
            return


def _name_faults(members: list[tarfile.TarInfo]) -> Iterator[str]:
    for member in members:
        parts = member.name.split("/")
        if member.name.startswith("/") or ".." in parts:
            yield f"member {member.name!r} leaves the folder it is unpacked in"
        elif len(parts) > 1:
            yield f"member {member.name!r} is in a folder"
        if not member.isreg():
            yield f"member {member.name!r} is a {_kind(member)}, not a file"
        if member.name.lower().endswith(_PICKLES):
            yield f"member {member.name!r} is a pickle: loading it could run any code"


def _order_faults(found: list[str], wanted: list[str]) -> Iterator[str]:
    known, there = set(wanted), Counter(found)
    yield from (f"member {name!r} is unexpected: no row has it" for name in found if name not in known)
    yield from (f"member {name!r} is missing" for name in wanted if name not in there)
    if len(there) != len(found):
        yield f"member {next(name for name, count in there.items() if count > 1)!r} is there twice"
    if sorted(found) == sorted(wanted):
        yield "its members are not in the order of the rows, image then annotation"


def _placed(members: list[tarfile.TarInfo]) -> Iterator[_Member]:
    begin = 0
    for member in members:
        yield _Member(member, begin)
        begin = member.offset_data + member.size + -member.size % tarfile.BLOCKSIZE


def _row_faults(
    stream: BinaryIO, found: dict[str, _Member], row: dict[str, Any], table: pa.Table
) -> Iterator[str]:
    image, annotation = (found.get(name) for name in _member_names(row))
    if image is not None:
        name, at, size = image.info.name, image.info.offset_data, image.info.size
        if (at, size) != (row["tar_offset"], row["tar_size"]):
            yield f"image {name} is at bytes {at} + {size}, the table says otherwise"
        yield from image.header_faults(stream)
        yield from _image_faults(name, image.read(stream, MAX_IMAGE_BYTES), row)
        yield from image.padding_faults(stream)
    if annotation is not None:
        yield from annotation.header_faults(stream)
        if not _agrees(annotation.read(stream, MAX_RECORD_BYTES), row, table):
            yield f"{annotation.info.name} does not say what the table says"
        yield from annotation.padding_faults(stream)


def _image_faults(name: str, data: bytes, row: dict[str, Any]) -> Iterator[str]:
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        yield f"image {name} has another sha256 than the table says"
        return
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # Pillow gives a TIFF's size upright, that of all others as stored.
            on_its_side = row["orientation"] >= FIRST_ON_ITS_SIDE and image.format != "TIFF"
            upright = image.size[::-1] if on_its_side else image.size
            damaged = image.format == "PNG" and not has_sound_checksums(data)
            # Of a PNG it may stand behind the pixels, which are not decoded here.
            turned = row["orientation"] if image.format == "PNG" else exif_orientation(image)
    except Exception as error:  # Pillow's parsers raise almost anything on hostile bytes
        yield f"image {name} cannot be opened ({type(error).__name__})"
        return
    if damaged:
        yield f"image {name} was damaged before it was mined (a checksum of its pixels is wrong): training refuses it"
    if turned != row["orientation"]:
        yield f"image {name} has EXIF orientation {turned}, the table says {row['orientation']}"
    if upright != (row["width"], row["height"]):
        yield f"image {name} is {upright[0]} x {upright[1]}, the table says {row['width']} x {row['height']}"


def _agrees(data: bytes, row: dict[str, Any], table: pa.Table) -> bool:
    first, last = box_offsets(table)[row["place"] : row["place"] + 2]
    try:
        content = json.loads(data)
        with np.errstate(over="ignore"):  # what is no float32 is infinite, and so no box of the table
            boxes = np.asarray(content["boxes"], dtype=np.float32).reshape(-1, 4)
            ranks = np.asarray(content["ranks"], dtype=np.float32)
        plain = all(content[name] == row[name] for name in ("width", "height", "uri"))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False
    same = np.array_equal(boxes, flat_boxes(table)[first:last])
    return plain and same and np.array_equal(ranks, flat_ranks(table)[first:last])


def _header(name: str, size: int) -> bytes | None:
    try:
        return member_header(name, size)
    except ValueError:  # ustar cannot say it
        return None


def _end_faults(stream: BinaryIO, end: int) -> Iterator[str]:
    stream.seek(end)
    rest = stream.read(1 + 2 * tarfile.RECORDSIZE)
    if len(rest) > tarfile.RECORDSIZE + tarfile.BLOCKSIZE or rest.strip(b"\0"):
        yield f"holds something after its last member, at byte {end}"


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    names = ("key", "uri", "sha256", "width", "height", "orientation", "tar_offset", "tar_size")
    for place, row in enumerate(table.select(names).to_pylist()):
        yield {**row, "place": place}


def _member_names(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['key']}.{layout.image_extension(row['uri'])}", f"{row['key']}.json"


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link", tarfile.DIRTYPE: "folder"}
    return kinds.get(member.type, "device or special file")
