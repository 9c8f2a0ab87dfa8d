"""SoCo's json: one object, image stem to a list of [x, y, w, h].

SoCo counts w = max_x - min_x between the first and the last pixel of a region, both inside it, so its boxes are one
pixel short of half-open ones: a region of columns 3..9 has w = 6 there and x1 = 3, x2 = 10 here. Writing takes one
pixel off each side, reading puts it back. A box narrower than one pixel cannot be written and becomes one pixel.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from proposals.convert.json_stream import members
from proposals.convert.stream import ImageBoxes, Source, fit_float32, positions
from proposals.dataset.files import publish, temporary_beside
from proposals.errors import AlignDetError


def write_soco(source: Source, path: Path) -> int:
    """Write ``source`` to ``path``, image by image; returns how many boxes.

    Raises AlignDetError when two images have the same stem: SoCo tells images apart by it alone.
    """
    stems: set[str] = set()
    count = 0
    with temporary_beside(path) as (temporary,):
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write("{")
            for image in source.images():
                stem = PurePosixPath(image.uri).stem
                if stem in stems:
                    raise AlignDetError(
                        f"{image.uri}: another image is called {stem!r} too, and SoCo's form has nothing but that "
                        "name. Convert to coco, or rename the images and mine again."
                    )
                stream.write((",\n" if stems else "\n") + f"{json.dumps(stem)}:{_rows(image)}")
                stems.add(stem)
                count += len(image.rank)
            stream.write("}\n")
        publish(temporary, path)
    return count


class SocoSource:
    """The images of a SoCo json file: the uri is the stem, the image size is unknown, rank is the position."""

    clustered = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def images(self) -> Iterator[ImageBoxes]:
        """Every image, in file order. Raises AlignDetError when a box is not four numbers."""
        name: str | None = None
        rows: list[object] = []
        for found, part in members(self._path):
            if name is not None and found != name:
                yield self._image(name, rows)
                rows = []
            name = found
            rows += part
        if name is not None:
            yield self._image(name, rows)

    def _image(self, stem: str, rows: list[object]) -> ImageBoxes:
        try:
            xywh = np.array(rows, dtype=np.float64).reshape(-1, 4)
            if len(xywh) != len(rows) or not fit_float32(xywh):
                raise ValueError("not four finite numbers")
        except (TypeError, ValueError) as error:
            raise AlignDetError(
                f"{self._path}: the boxes of {stem!r} are no list of [x, y, w, h] ({error}). Is it SoCo's form?"
            ) from error
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] + 1], axis=1).astype(np.float32)
        return ImageBoxes(stem, 0, 0, boxes, positions(len(rows)))


def _rows(image: ImageBoxes) -> str:
    corners = image.boxes.astype(np.float64)
    sides = np.maximum(corners[:, 2:] - corners[:, :2] - 1, 0)
    return json.dumps(np.concatenate([corners[:, :2], sides], axis=1).tolist(), separators=(",", ":"))
