"""What every converter reads and writes: images with their boxes, one after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes
from proposals.dataset import ProposalDataset
from proposals.dataset.clusters import read_clusters
from proposals.errors import AlignDetError
from proposals.rows import iterate_rows

CATEGORY = "selective_search"
CLUSTERS = 256
_LARGEST = 1e30


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """One image's proposals.

    uri: name of the image file, with a slash between folders. width, height: px, 0 where the format does not say.
    boxes: [N, 4] float32 xyxy px, half-open, best first. rank: [N] float32, ascending. clusters: [N] int64 in
    1..256 where boxes carry a cluster id (DETR), else None. sha256: of the image file, hex, where the form says.
    status: by which rule a dataset's boxes came, see docs/format.md; None in other forms.
    """

    uri: str
    width: int
    height: int
    boxes: Boxes
    rank: npt.NDArray[np.float32]
    clusters: npt.NDArray[np.int64] | None = None
    sha256: str | None = None
    status: str | None = None


class Source(Protocol):
    """Where boxes are read from. It can be walked more than once; only a part of it is in memory at a time."""

    clustered: bool

    def images(self) -> Iterator[ImageBoxes]:
        """Every image, in order."""


class DatasetSource:
    """The images of a dataset, with their boxes' clusters where it has them (`aligndet cluster`).

    Raises AlignDetError when the clusters are damaged, or more than the 256 that the forms have names for.
    """

    def __init__(self, dataset: ProposalDataset) -> None:
        self._dataset = dataset
        clusters = read_clusters(dataset.root, dataset.manifest)
        if clusters is not None and clusters.k > CLUSTERS:
            raise AlignDetError(
                f"{dataset.root} has {clusters.k} clusters, only {CLUSTERS} have a name in AlignDet's form. Run: "
                f"aligndet cluster {dataset.root} --k {CLUSTERS}"
            )
        self._ids = None if clusters is None else clusters.ids
        self.clustered = clusters is not None

    def images(self) -> Iterator[ImageBoxes]:
        """Every image, in dataset order, one shard's table in memory."""
        first = 0
        for rows in iterate_rows(self._dataset):
            for i, (uri, sha256) in enumerate(zip(rows.uris, rows.sha256.to_pylist(), strict=True)):
                part = slice(int(rows.offsets[i]), int(rows.offsets[i + 1]))
                width, height = rows.sizes[i].tolist()
                ids = self._cluster_ids(first + part.start, first + part.stop)
                status = rows.statuses[i]
                yield ImageBoxes(uri, width, height, rows.boxes[part], rows.rank[part], ids, sha256, status)
            first += int(rows.offsets[-1])

    def _cluster_ids(self, first: int, last: int) -> npt.NDArray[np.int64] | None:
        return None if self._ids is None else self._ids[first:last].astype(np.int64)


def fit_float32(values: npt.NDArray[np.float64]) -> bool:
    """Whether all of ``values`` are finite, also as float32 and with any other of them added."""
    return bool((np.abs(values) < _LARGEST).all())


ImageIds = Callable[[int, str], int]


def numbered(place: int, uri: str) -> int:
    """The image id used unless others are asked for: 1, 2, 3 ..."""
    return place + 1


def positions(count: int) -> npt.NDArray[np.float32]:
    """[count] float32: the ranks 1, 2, 3 ... of boxes that come without."""
    return np.arange(1, count + 1, dtype=np.float32)
