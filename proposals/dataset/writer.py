"""Writing one shard: a tar of images, a Parquet table of boxes, then the commit record that proves both."""

import hashlib
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pydantic_core import to_json

from proposals.dataset import layout
from proposals.dataset.columns import number_column, text_column
from proposals.dataset.files import publish_all, temporary_beside
from proposals.dataset.manifest import FileEntry, ShardEntry
from proposals.dataset.tables import BOX, REFERENCE_SCHEMA, SCHEMA, write_table
from proposals.filter_spec import STATUSES, Filtered

_BLOCK = 512


@dataclass(frozen=True)
class MinedImage:
    """One image and its proposals, in pixels of the upright original.

    data: the file's bytes, untouched. sha256: theirs, hex. width, height: of the upright image.
    """

    key: str
    uri: str
    data: bytes
    sha256: str
    width: int
    height: int
    orientation: int
    proposals: Filtered


class ShardWriter:
    """Collects the images of one shard; `commit` makes them visible together.

    embed: whether image files become part of the dataset, in a tar; otherwise they stay where they are.
    Use as a context manager: leaving it without `commit` removes what was written.
    """

    def __init__(self, root: Path, name: str, *, embed: bool = True) -> None:
        self._root, self._name, self._embed = root, name, embed
        self._tar_path, self._parquet_path = layout.tar_path(root, name), layout.parquet_path(root, name)
        self._temporary = temporary_beside(self._tar_path, self._parquet_path)
        self._rows: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()

    def __enter__(self) -> "ShardWriter":
        self._tar_temporary, self._parquet_temporary = self._temporary.__enter__()
        self._stream: BinaryIO = self._tar_temporary.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
        except OSError:
            if error is None:  # else it is what could not be written before, tried again
                raise
        finally:
            self._temporary.__exit__(kind, error, trace)

    def add(self, image: MinedImage) -> None:
        """Append one image and its proposals."""
        offset = None
        if self._embed:
            offset = self._member(f"{image.key}.{layout.image_extension(image.uri)}", image.data)
            self._member(f"{image.key}.json", _annotation(image))
        self._rows.append(_row(image, offset))

    def flush(self) -> None:
        """Bring to disk what was added so far: at a moment when nobody waits, so that `commit` has less left to do."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def commit(self) -> ShardEntry:
        """Flush both files and rename them into place. A shard without an image leaves no file.

        The caller then writes the commit record: until then the shard does not count.
        """
        if not self._rows:
            return ShardEntry(name=self._name, images=0, proposals=0, statuses={}, tar=None, parquet=None)
        tar = self._end_tar() if self._embed else None
        table = _table(self._rows, SCHEMA if self._embed else REFERENCE_SCHEMA)
        proposals = sum(len(row["rank"]) for row in self._rows)
        write_table(self._parquet_temporary, table, proposals)
        parquet = FileEntry.of(self._root, self._parquet_path, self._parquet_temporary)
        tars = {self._tar_temporary: self._tar_path} if self._embed else {}
        publish_all({**tars, self._parquet_temporary: self._parquet_path})
        found = Counter(row["status"] for row in self._rows)
        return ShardEntry(
            name=self._name,
            images=len(self._rows),
            proposals=proposals,
            statuses={status: found[status] for status in STATUSES if found[status]},
            tar=tar,
            parquet=parquet,
        )

    def _member(self, name: str, data: bytes) -> int:
        offset = self._stream.tell() + _BLOCK
        # As tarfile's own addfile would, which copies in small pieces.
        self._write(member_header(name, len(data)))
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def _end_tar(self) -> FileEntry:
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._stream.tell() % tarfile.RECORDSIZE))
        size = self._stream.tell()
        self._stream.close()
        path = self._tar_path.relative_to(self._root).as_posix()
        return FileEntry(path=path, bytes=size, sha256=self._digest.hexdigest())

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._stream.write(data)


def member_header(name: str, size: int) -> bytes:
    """The one header, of 512 bytes, that a member of so many bytes has in a shard's tar.

    Raises ValueError for a name of more than 100 bytes or a size that ustar has no digits for.
    """
    info = tarfile.TarInfo(
        name
    )  # its defaults (mtime, uid, gid 0; mode 0644) are what makes bytes repeatable
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _annotation(image: MinedImage) -> bytes:
    content = {
        "width": image.width,
        "height": image.height,
        "boxes": image.proposals.boxes.tolist(),
        "ranks": image.proposals.rank.tolist(),
        "uri": image.uri,
    }
    return to_json(content)  # a quarter of the time of the standard library's, beside a search that counts


def _row(image: MinedImage, offset: int | None) -> dict[str, Any]:
    return {
        "key": image.key,
        "uri": image.uri,
        "sha256": image.sha256,
        "width": image.width,
        "height": image.height,
        "orientation": image.orientation,
        "boxes": image.proposals.boxes,
        "rank": image.proposals.rank,
        "status": image.proposals.status,
        "tar_offset": offset,
        "tar_size": len(image.data),
    }


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    offsets = number_column(np.cumsum([0, *(len(row["rank"]) for row in rows)]), pa.int32())
    flat = number_column(np.concatenate([row["boxes"] for row in rows]).reshape(-1), pa.float32())
    ranks = number_column(np.concatenate([row["rank"] for row in rows]), pa.float32())
    boxes = pa.FixedSizeListArray.from_arrays(flat, type=BOX)
    lists = {
        "boxes": pa.ListArray.from_arrays(offsets, boxes, type=schema.field("boxes").type),
        "rank": pa.ListArray.from_arrays(offsets, ranks, type=schema.field("rank").type),
    }
    columns = [lists[field.name] if field.name in lists else _column(rows, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(rows: list[dict[str, Any]], field: pa.Field) -> pa.Array:
    values = [row[field.name] for row in rows]
    if field.type == pa.string():
        return text_column(values)
    return pa.nulls(len(rows), field.type) if values[0] is None else number_column(values, field.type)
