"""The boxes of a dataset, many images at a time, without their pixels: what everything that streams reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from proposals.boxes import Boxes
from proposals.dataset import ProposalDataset
from proposals.dataset.tables import box_offsets, flat_boxes, flat_ranks, numbers, read_shard

_BATCH = 1024


@dataclass(frozen=True)
class Rows:
    """Consecutive images of a dataset.

    uris, statuses: [N]. sizes: [N, 2] int64, (width, height) px. offsets: [N + 1] int64: image i owns
    boxes[offsets[i]:offsets[i + 1]]. boxes: [M, 4] float32 xyxy px, half-open, best first. rank: [M] float32.
    sha256: [N] strings, hex, of the image files.
    """

    uris: list[str]
    statuses: list[str]
    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes: Boxes
    rank: npt.NDArray[np.float32]
    sha256: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.uris)


def iterate_rows(dataset: ProposalDataset, shards: Sequence[int] | None = None) -> Iterator[Rows]:
    """All images of ``dataset`` in order, or those of the shards at these positions (of those that hold images).

    At most 1024 images at a time, one shard's table in memory. Raises AlignDetError when a shard is damaged.
    """
    entries = [entry for entry in dataset.manifest.shards if entry.images]
    for shard in range(len(entries)) if shards is None else shards:
        table = read_shard(dataset.root, entries[shard])
        for first in range(0, table.num_rows, _BATCH):
            yield _rows(table, first, min(first + _BATCH, table.num_rows))


def _rows(table: pa.Table, first: int, last: int) -> Rows:
    offsets = box_offsets(table)[first : last + 1]
    part, boxes = table.slice(first, last - first), slice(int(offsets[0]), int(offsets[-1]))
    sizes = [numbers(part.column(name).chunk(0)).astype(np.int64) for name in ("width", "height")]
    return Rows(
        uris=part.column("uri").to_pylist(),
        statuses=part.column("status").to_pylist(),
        sizes=np.stack(sizes, axis=1),
        offsets=offsets - offsets[0],
        boxes=flat_boxes(table)[boxes],
        rank=flat_ranks(table)[boxes],
        sha256=part.column("sha256"),
    )
