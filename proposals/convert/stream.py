"""What every converter reads and writes: images with their boxes, one after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes
from proposals.dataset import ProposalDataset
from proposals.rows import iterate_rows

CATEGORY = "selective_search"
CLUSTERS = 256
_LARGEST = 1e30


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """One image's proposals.

    uri: name of the image file, with a slash between folders. width, height: px, 0 where the format does not say.
    boxes: [N, 4] float32 xyxy px, half-open, best first. rank: [N] float32, ascending. clusters: [N] int64 in
    1..256 where boxes carry a cluster id (DETR), else None.
    """

    uri: str
    width: int
    height: int
    boxes: Boxes
    rank: npt.NDArray[np.float32]
    clusters: npt.NDArray[np.int64] | None = None


class Source(Protocol):
    """Where boxes are read from. It can be walked more than once; only a part of it is in memory at a time."""

    clustered: bool

    def images(self) -> Iterator[ImageBoxes]:
        """Every image, in order."""


class DatasetSource:
    """The images of a dataset."""

    clustered = False

    def __init__(self, dataset: ProposalDataset) -> None:
        self._dataset = dataset

    def images(self) -> Iterator[ImageBoxes]:
        """Every image, in dataset order, one shard's table in memory."""
        for rows in iterate_rows(self._dataset):
            for i, uri in enumerate(rows.uris):
                part = slice(int(rows.offsets[i]), int(rows.offsets[i + 1]))
                width, height = rows.sizes[i].tolist()
                yield ImageBoxes(uri, width, height, rows.boxes[part], rows.rank[part])


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
