"""Small copies of some images, with their best boxes in the copies' pixels."""

import base64
from dataclasses import dataclass

import cv2

from proposals.boxes import scale
from proposals.dataset import ProposalDataset, Record
from proposals.dataset.as_mined import OtherImageError, decoded_as_mined
from proposals.images import ImageRejected, resize_max_side
from proposals.report.numbers import spread

LONG_SIDE = 480
MAX_BYTES = 2_500_000
MAX_BOXES = 300
_JPEG_QUALITY = 72


@dataclass(frozen=True)
class Picture:
    """One image of the gallery.

    uri: its name, as hostile as file names are. jpeg: base64. width, height: px of the copy. total: how many boxes
    the image has. boxes: the best of them, x1, y1, x2, y2, x1 ... in whole px of the copy.
    """

    uri: str
    jpeg: str
    width: int
    height: int
    total: int
    boxes: list[int]


def choose(dataset: ProposalDataset, wanted: int) -> list[Picture]:
    """Up to ``wanted`` evenly spaced images; fewer when one no longer decodes or all would exceed 2.5 MB."""
    if wanted < 1:
        return []
    pictures: list[Picture] = []
    spent = 0
    for place in spread(len(dataset), wanted):
        picture = _picture(dataset[place])
        if picture is None or spent + len(picture.jpeg) > MAX_BYTES:
            continue
        spent += len(picture.jpeg)
        pictures.append(picture)
    return pictures


def _picture(record: Record) -> Picture | None:
    try:
        image = decoded_as_mined(record, record.image_bytes(), max(1, record.width * record.height))
    except (ImageRejected, OtherImageError):
        return None
    small, back_x, back_y = resize_max_side(image.bgr, LONG_SIDE)
    done, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        return None
    boxes = scale(record.boxes[:MAX_BOXES], 1 / back_x, 1 / back_y)
    return Picture(
        uri=record.uri,
        jpeg=base64.b64encode(encoded.tobytes()).decode(),
        width=small.shape[1],
        height=small.shape[0],
        total=len(record.rank),
        boxes=[round(value) for value in boxes.reshape(-1).tolist()],
    )
