"""A picture of clusters: for each, the crops nearest to its centre, at most one from an image."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from proposals.boxes import clip
from proposals.dataset import ProposalDataset, ProposalReader
from proposals.dataset.as_mined import decoded_as_mined
from proposals.dataset.clusters import Clusters
from proposals.images import Bgr

CROP, CROPS, GAP, CAPTION, COLUMNS = 64, 8, 4, 20, 3
_BLOCK_WIDTH = CROPS * CROP + 12
_BLOCK_HEIGHT = CROP + CAPTION + 8
_BACKGROUND, _TEXT = (17, 19, 24), (229, 231, 235)

Ids = npt.NDArray[np.int64]


def cluster_sheet(dataset: ProposalDataset, clusters: Clusters, most: int | None = None) -> Image.Image:
    """All clusters by size, or the ``most`` largest, a row of crops for each; crops fill squares, unstretched.

    Raises AlignDetError or ImageRejected when an image cannot be read.
    """
    numbers = range(1, min(clusters.k, most or clusters.k) + 1)
    owners = _owners(dataset)
    chosen = {number: _nearest(clusters, owners, number) for number in numbers}
    crops = _crops(dataset, owners, sorted(box for boxes in chosen.values() for box in boxes))
    rows = -(-len(numbers) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * _BLOCK_WIDTH + 12, rows * _BLOCK_HEIGHT + 12), _BACKGROUND)
    sizes, font = np.bincount(clusters.ids, minlength=clusters.k + 1), ImageFont.load_default(13)
    for place, number in enumerate(numbers):
        left, upper = 12 + place // rows * _BLOCK_WIDTH, 12 + place % rows * _BLOCK_HEIGHT
        caption = f"cluster_{number}   {sizes[number]:,} boxes"
        ImageDraw.Draw(sheet).text((left, upper), caption, _TEXT, font)
        for i, box in enumerate(chosen[number]):
            sheet.paste(crops[box], (left + i * CROP, upper + CAPTION))
    return sheet


def _owners(dataset: ProposalDataset) -> Ids:
    """[M] int64: the image of every box, in dataset order."""
    counts = [np.diff(batch.offsets) for batch in ProposalReader(dataset.root, "parquet").batches(1024)]
    flat = np.concatenate([*counts, np.empty(0, np.int64)])
    return np.repeat(np.arange(len(flat), dtype=np.int64), flat)


def _nearest(clusters: Clusters, owners: Ids, number: int) -> list[int]:
    members = np.flatnonzero(clusters.ids == number)
    members = members[np.argsort(clusters.distances[members], kind="stable")]
    # The boxes of one image around one thing are near each other: they would fill the row.
    _, first = np.unique(owners[members], return_index=True)
    return [int(box) for box in members[np.sort(first)[:CROPS]]]


def _crops(dataset: ProposalDataset, owners: Ids, boxes: list[int]) -> dict[int, Image.Image]:
    return {
        box: crop for image, group in _by_image(owners, boxes) for box, crop in _cut(dataset, image, group)
    }


def _by_image(owners: Ids, boxes: list[int]) -> Iterator[tuple[int, list[int]]]:
    images = owners[boxes]
    for image in np.unique(images):
        yield int(image), [box for box, owner in zip(boxes, images, strict=True) if owner == image]


def _cut(dataset: ProposalDataset, image: int, boxes: list[int]) -> Iterator[tuple[int, Image.Image]]:
    record = dataset[image]
    bgr = decoded_as_mined(record, record.image_bytes(), max(1, record.width * record.height)).bgr
    first, (height, width) = dataset.first_box(image), bgr.shape[:2]
    for box in boxes:
        x1, y1, x2, y2 = clip(record.boxes[box - first], width, height).round().astype(int).tolist()
        x1, y1 = min(x1, width - 1), min(y1, height - 1)  # a sliver at the edge rounds to nothing beyond it
        yield box, _tile(bgr[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)])


def _tile(crop: Bgr) -> Image.Image:
    height, width = crop.shape[:2]
    factor = (CROP - GAP) / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    tile = Image.new("RGB", (CROP, CROP), _BACKGROUND)
    tile.paste(
        Image.fromarray(np.ascontiguousarray(small[:, :, ::-1])),
        ((CROP - size[0]) // 2, (CROP - size[1]) // 2),
    )
    return tile
