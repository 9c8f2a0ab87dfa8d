"""Reading a finished dataset: a sequence of records with random access to boxes and image bytes."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from proposals.boxes import Boxes
from proposals.dataset import layout
from proposals.dataset.files import read_range
from proposals.dataset.manifest import Manifest, read_manifest
from proposals.dataset.tables import (
    REFERENCE_SCHEMA,
    SCHEMA,
    box_offsets,
    flat_boxes,
    flat_ranks,
    read_columns,
    read_shard,
)
from proposals.errors import AlignDetError
from proposals.image_roots import ImageRoot
from proposals.images import ImageRejected
from proposals.paths import ForkSafePath, as_path, is_web, scheme_of

_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Record:
    """One image of a dataset.

    key: unique sample key. uri: the image's name in the source (for a folder, its path below it).
    width, height: px of the upright image, that is with EXIF orientation applied; orientation: its EXIF value.
    boxes: [N, 4] float32 xyxy px of the upright original, half-open, best first. rank: [N] float32, ascending.
    status: ``ok`` or the fallback that gave the boxes (proposals.filters). sha256: of the image bytes, hex.
    shard, row: where it is stored; size: of the image file in bytes; tar, offset: its place, None when it stayed
    where it was, which ``images`` tells.
    """

    key: str
    uri: str
    width: int
    height: int
    boxes: Boxes
    rank: npt.NDArray[np.float32]
    status: str
    orientation: int
    sha256: str
    shard: int
    row: int
    tar: Path | None
    offset: int | None
    size: int
    images: ImageRoot | None = None

    def image_bytes(self) -> bytes:
        """The original image file, for `proposals.images.decode_bgr`.

        Raises AlignDetError when it is gone, cut, or, where it is not part of the dataset, has another size than the
        file that was mined. `aligndet verify --deep` compares sha256.
        """
        if self.tar is not None and self.offset is not None:
            return _read_range(self.tar, self.offset, self.size)
        return _read_reference(self.images, self.uri, self.size)


def open_dataset(path: str | Path) -> "ProposalDataset":
    """Open the finished dataset in the folder ``path``, or at a URL such as s3://bucket/dataset.

    Raises AlignDetError when it is not a dataset, still in progress, damaged, or of a newer major format.
    """
    return ProposalDataset(as_path(path))


class ProposalDataset(Sequence[Record]):
    """A sequence of `Record`. Only the tables of the shards used last are held, 64 MiB of them.

    Safe to share between threads and forked processes. Pickling hands over the path alone: the copy opens the
    folder again.
    """

    def __init__(self, root: Path) -> None:
        root = as_path(root)
        self._root = ForkSafePath(root)
        self.manifest: Manifest = read_manifest(root)
        refuse_pointing_here(root, self.manifest)
        self._shards = [shard for shard in self.manifest.shards if shard.images]
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._first_boxes = np.cumsum([0, *(shard.proposals for shard in self._shards)])
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["ProposalDataset"], tuple[Path]]:
        return ProposalDataset, (self.root,)

    @property
    def root(self) -> Path:
        """The folder or URL."""
        return self._root.here

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, row = self.locate(index)
        return self._record(shard, row)

    @cached_property
    def shard_names(self) -> tuple[str, ...]:
        """Names of the shards that hold images, in dataset order."""
        return tuple(shard.name for shard in self._shards)

    @cached_property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """[S] int64: images per shard. Dataset order is shard by shard."""
        return np.array([shard.images for shard in self._shards], dtype=np.int64)

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, row in that shard) of image ``index``; negative counts from the end. Raises IndexError."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"image {index} of a dataset of {len(self)}")
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        return shard, position - int(self._starts[shard])

    def first_box(self, index: int) -> int:
        """The place of image ``index``'s first box among all boxes of the dataset, in dataset order."""
        shard, row = self.locate(index)
        return int(self._first_boxes[shard]) + int(box_offsets(self.shard_table(shard))[row])

    def image_bytes(self, index: int) -> bytes:
        """The original file of image ``index``."""
        return self[index].image_bytes()

    def shard_tar(self, shard: int) -> Path:
        """The tar file of shard ``shard``, in a dataset whose images are part of it."""
        return layout.tar_path(self.root, self._shards[shard].name)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows as one Arrow table, in dataset order, reading only ``columns`` (None: all)."""
        tables = [read_columns(self.root, shard, columns) for shard in self._shards]
        if not tables:
            empty = (SCHEMA if self.manifest.images is None else REFERENCE_SCHEMA).empty_table()
            return empty if columns is None else empty.select(columns)
        return pa.concat_tables(tables)

    def _record(self, shard: int, row: int) -> Record:
        table = self.shard_table(shard)
        names = ("key", "uri", "width", "height", "status", "orientation", "sha256")
        plain = {name: table.column(name)[row].as_py() for name in names}
        first, last = box_offsets(table)[row : row + 2]
        return Record(
            **plain,
            boxes=flat_boxes(table)[first:last].copy(),
            rank=flat_ranks(table)[first:last].copy(),
            shard=shard,
            row=row,
            tar=self.shard_tar(shard) if self.manifest.images is None else None,
            images=self.manifest.images,
            offset=table.column("tar_offset")[row].as_py(),
            size=table.column("tar_size")[row].as_py(),
        )

    def shard_table(self, shard: int) -> pa.Table:
        """The table of shard ``shard`` (see proposals.dataset.tables), checked against the manifest and cached."""
        with self._lock:
            if shard in self._cache:
                self._cache.move_to_end(shard)
                return self._cache[shard]
        table = read_shard(self.root, self._shards[shard])
        with self._lock:
            self._cache[shard] = table
            while len(self._cache) > 1 and sum(held.nbytes for held in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        return table


def refuse_pointing_here(root: Path, manifest: Manifest) -> None:
    """Raise AlignDetError when the dataset at the URL ``root`` says that its images are files of this machine."""
    # Nobody can mine into a web server: what lies there is a stranger's, and has no business with this machine's files.
    if is_web(root) and manifest.images is not None and scheme_of(manifest.images.root) is None:
        raise AlignDetError(
            f"the dataset at {root} has its images at {manifest.images.root}, on this machine: a dataset from a web "
            "server may not name local files. Download it first if you trust it."
        )


def _read_range(path: Path, offset: int, size: int) -> bytes:
    try:
        data = read_range(path, offset, size)
    except OSError as error:
        why = error.strerror or error
        raise AlignDetError(
            f"{path} cannot be opened: {why}. The dataset is damaged or was moved."
        ) from error
    if len(data) != size:
        raise AlignDetError(f"{path} ends inside the image at byte {offset}: the dataset is damaged.")
    return data


def _read_reference(images: ImageRoot | None, uri: str, size: int) -> bytes:
    if images is None:
        raise AlignDetError(
            f"{uri} is in no tar and dataset.json does not say where: the dataset is damaged."
        )
    try:
        data = images.read(uri)
    except (ImageRejected, OSError) as error:
        raise AlignDetError(
            f"{uri} cannot be read below {images.root}: {error}. This dataset holds boxes only, its images must stay "
            "where they were mined."
        ) from error
    if len(data) != size:
        raise AlignDetError(
            f"{uri} below {images.root} has changed since it was mined: {len(data)} bytes, it had {size}. "
            "Put the old file back, or mine the images again."
        )
    return data
