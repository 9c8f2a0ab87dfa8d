"""Boxes by index, key, slice or batch, with one interface over proposals.zarr and the Parquet tables."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, overload

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes
from proposals.dataset import layout
from proposals.dataset.checks.folder import file_faults
from proposals.dataset.manifest import Manifest, read_manifest
from proposals.dataset.reader import ProposalDataset
from proposals.dataset.tables import box_offsets, flat_boxes, flat_ranks, is_sound
from proposals.dataset.zarr_reading import Declared, open_arrays, values
from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import as_path

Storage = Literal["auto", "zarr", "parquet"]
_Offsets = npt.NDArray[np.int64]
_Ranks = npt.NDArray[np.float32]
_CACHED_BLOCKS = 512


@dataclass(frozen=True, eq=False)
class ProposalBatch:
    """Boxes of consecutive images, the first being image ``start`` of the dataset.

    offsets: [K + 1] int64, from 0; image i of the batch has the rows offsets[i] to offsets[i + 1].
    boxes: [P, 4] float32 xyxy px of the upright original, half-open, best first. rank: [P] float32, ascending.
    """

    start: int
    offsets: _Offsets
    boxes: Boxes
    rank: _Ranks

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> tuple[Boxes, _Ranks]:
        if not 0 <= place < len(self):
            raise IndexError(f"image {place} of a batch of {len(self)}")
        first, last = self.offsets[place : place + 2]
        return self.boxes[first:last], self.rank[first:last]


class ProposalReader:
    """Boxes and ranks of a finished dataset, in dataset order, without the images.

    ``reader[7]`` and ``reader["key"]`` give ([N, 4] float32 boxes, [N] float32 rank); ``reader[2:9]`` a
    `ProposalBatch`. storage: ``zarr``, ``parquet``, or ``auto`` for Zarr where it is committed.
    Raises AlignDetError when the dataset cannot be opened, or for ``zarr`` when proposals.zarr is missing, not
    committed in dataset.json, or damaged.
    """

    def __init__(self, root: str | Path, storage: Storage = "auto") -> None:
        self.root = as_path(root)
        manifest = read_manifest(self.root)
        use_zarr = storage == "zarr" or (storage == "auto" and bool(manifest.consolidated))
        self.storage: Storage = "zarr" if use_zarr else "parquet"
        self._length = manifest.totals.images
        self._backend: _Backend = _Zarr(self.root, manifest) if use_zarr else _Parquet(self.root)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, where: int | str) -> tuple[Boxes, _Ranks]: ...
    @overload
    def __getitem__(self, where: slice) -> ProposalBatch: ...
    def __getitem__(self, where: int | str | slice) -> tuple[Boxes, _Ranks] | ProposalBatch:
        if isinstance(where, slice):
            start, stop, step = where.indices(len(self))
            if step != 1:
                raise IndexError("a slice of proposals has step 1")
            return self._backend.read(start, max(start, stop))
        index = self.index(where) if isinstance(where, str) else range(len(self))[where]
        return self._backend.read(index, index + 1)[0]

    def index(self, key: str) -> int:
        """The place of the image with this key in dataset order; raises KeyError. The first call reads all keys."""
        wanted = np.bytes_(key.encode())
        place = int(np.searchsorted(self.keys, wanted, sorter=self._by_key))
        if place == len(self) or self.keys[self._by_key[place]] != wanted:
            raise KeyError(key)
        return int(self._by_key[place])

    @cached_property
    def keys(self) -> npt.NDArray[np.bytes_]:
        """[len] bytes (ASCII): the key of every image, in dataset order."""
        return self._backend.keys()

    @cached_property
    def _by_key(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.keys, kind="stable")

    def batches(self, size: int) -> Iterator[ProposalBatch]:
        """The whole dataset in order, ``size`` images at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


class _Backend(Protocol):
    def read(self, start: int, stop: int) -> ProposalBatch: ...
    def keys(self) -> npt.NDArray[np.bytes_]: ...


class _Parquet:
    def __init__(self, root: Path) -> None:
        self._dataset = ProposalDataset(root)

    def read(self, start: int, stop: int) -> ProposalBatch:
        """Boxes of the images ``start`` to ``stop``, from the tables of their shards."""
        counts, boxes, ranks = (
            [np.zeros(1, np.int64)],
            [np.empty((0, 4), np.float32)],
            [np.empty(0, np.float32)],
        )
        place = start
        while place < stop:
            shard, row = self._dataset.locate(place)
            table = self._dataset.shard_table(shard)
            rows = min(stop - place, table.num_rows - row)
            offsets = box_offsets(table)[row : row + rows + 1]
            counts.append(np.diff(offsets))
            boxes.append(flat_boxes(table)[offsets[0] : offsets[-1]])
            ranks.append(flat_ranks(table)[offsets[0] : offsets[-1]])
            place += rows
        return ProposalBatch(
            start, np.cumsum(np.concatenate(counts)), np.concatenate(boxes), np.concatenate(ranks)
        )

    def keys(self) -> npt.NDArray[np.bytes_]:
        keys = self._dataset.table(["key"]).column("key").to_pylist()
        return np.array(keys, dtype=f"S{layout.KEY_LENGTH}")


class _Zarr:
    """Reads whole chunks and keeps the last ones: a chunk is what must be decoded for one box anyway."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        _require_committed(root, manifest)
        images, boxes = manifest.totals.images, manifest.totals.proposals
        wanted: dict[str, Declared] = {
            "boxes": ((boxes, 4), "float32"),
            "rank": ((boxes,), "float32"),
            "keys": ((images, layout.KEY_LENGTH), "uint8"),
            "offsets": ((images + 1,), "int64"),
        }
        try:
            arrays = open_arrays(root / layout.CONSOLIDATED, wanted)
        except UnansweredError:
            raise
        except AlignDetError as error:
            raise AlignDetError(f"{error} Run: aligndet consolidate {root}") from error
        self._boxes, self._rank, self._keys = (arrays[name] for name in ("boxes", "rank", "keys"))
        self._offsets = np.asarray(values(arrays["offsets"]))
        ends = self._offsets[0], self._offsets[-1]
        if ends != (0, boxes) or (np.diff(self._offsets) < 0).any():
            raise AlignDetError(
                f"offsets in {layout.CONSOLIDATED} of {root} do not ascend from 0 to {boxes}."
            )
        self._chunk = int(self._boxes.chunks[0])
        self._blocks: OrderedDict[int, tuple[Boxes, _Ranks]] = OrderedDict()

    def read(self, start: int, stop: int) -> ProposalBatch:
        """Boxes of the images ``start`` to ``stop``, from the chunks that hold them; a long range is not kept."""
        first, last = int(self._offsets[start]), int(self._offsets[stop])
        offsets = self._offsets[start : stop + 1] - first
        if last - first > 2 * self._chunk:
            return ProposalBatch(start, offsets, *self._values(slice(first, last)))
        boxes, ranks = [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
        for number in range(first // self._chunk, -(-last // self._chunk)):
            low = number * self._chunk
            block = self._block(number)
            inside = slice(max(first - low, 0), last - low)
            boxes.append(block[0][inside])
            ranks.append(block[1][inside])
        return ProposalBatch(start, offsets, np.concatenate(boxes), np.concatenate(ranks))

    def keys(self) -> npt.NDArray[np.bytes_]:
        return np.ascontiguousarray(values(self._keys)).view(f"S{layout.KEY_LENGTH}").reshape(-1)

    def _block(self, number: int) -> tuple[Boxes, _Ranks]:
        found = self._blocks.pop(number, None)
        if found is None:
            found = self._values(slice(number * self._chunk, (number + 1) * self._chunk))
        self._blocks[number] = found
        if len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return found

    def _values(self, part: slice) -> tuple[Boxes, _Ranks]:
        boxes, ranks = values(self._boxes, part), values(self._rank, part)
        # A chunk that is not there reads as zeros, boxes that are empty.
        if not is_sound(boxes, ranks).all():
            raise AlignDetError(
                f"boxes {part.start} to {part.stop} of {self._boxes.store_path} hold one that is empty, left of or "
                "above its image, or not finite: the dataset is damaged. See: aligndet verify --deep"
            )
        return boxes, ranks


def _require_committed(root: Path, manifest: Manifest) -> None:
    if not manifest.consolidated:
        raise AlignDetError(
            f"{layout.CONSOLIDATED} of {root} is not committed in {layout.MANIFEST}: it is missing, unfinished, or "
            f"older than images added since. Run: aligndet consolidate {root}"
        )
    for entry in manifest.consolidated:
        for fault in file_faults(root, entry, content=entry.path.endswith("zarr.json")):
            raise AlignDetError(f"{root / entry.path} {fault}. Run: aligndet consolidate {root}")
