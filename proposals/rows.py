"""The boxes of a dataset, many images at a time, without their pixels: what everything that streams reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from proposals.boxes import Boxes
from proposals.dataset import ProposalDataset, layout
from proposals.errors import AlignDetError

_BATCH = 1024
_COLUMNS = ("uri", "width", "height", "status", "boxes", "rank")


@dataclass(frozen=True)
class Rows:
    """Consecutive images of a dataset.

    uris, statuses: [N]. sizes: [N, 2] int64, (width, height) px. offsets: [N + 1] int64: image i owns
    boxes[offsets[i]:offsets[i + 1]]. boxes: [M, 4] float32 xyxy px, half-open, best first. rank: [M] float32.
    """

    uris: list[str]
    statuses: list[str]
    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes: Boxes
    rank: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.uris)


def iterate_rows(dataset: ProposalDataset, shards: Sequence[int] | None = None) -> Iterator[Rows]:
    """All images of ``dataset`` in order, or those of the shards at these positions; at most 1024 at a time.

    Raises AlignDetError when a Parquet file is missing or damaged.
    """
    names = dataset.shard_names
    for shard in range(len(names)) if shards is None else shards:
        yield from _shard_rows(layout.parquet_path(dataset.root, names[shard]))


def _shard_rows(path: Path) -> Iterator[Rows]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=list(_COLUMNS), use_threads=False):
                yield _rows(batch)
    except (OSError, pa.ArrowException) as error:
        raise AlignDetError(
            f"{path} cannot be read: {error}. The dataset is damaged or was moved."
        ) from error


def _rows(batch: pa.RecordBatch) -> Rows:
    boxes = batch.column("boxes")
    counts = boxes.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    sizes = [batch.column(name).to_numpy() for name in ("width", "height")]
    return Rows(
        uris=batch.column("uri").to_pylist(),
        statuses=batch.column("status").to_pylist(),
        sizes=np.stack(sizes, axis=1).astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4),
        rank=batch.column("rank").flatten().to_numpy(zero_copy_only=False),
    )
