"""What a filter is called, and what it leaves of an image.

A filter is named the way AlignDet's released files are: ``ratio3size0008@0.5``. Apart from `proposals.filters`, which
computes it: what only reads a dataset imports no compiler.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes
from proposals.errors import AlignDetError

Status = Literal["ok", "fallback_no_size", "fallback_min_side", "fallback_whole_image"]
STATUSES: tuple[Status, ...] = get_args(Status)

GRAMMAR = (
    "ratio<R>size<LL><HH>@<IOU>: aspect ratio at most R either way, sqrt(area) between LL and HH tenths of the "
    "image's, greedy NMS at IOU (ratio3size0008@0.5 keeps 1/3..3, 0.0..0.8, NMS 0.5); or none, to keep every box"
)
_NAME = re.compile(r"ratio(\d+(?:\.\d+)?)size(\d\d)(\d\d)@(\d*\.?\d+)")


@dataclass(frozen=True)
class FilterSpec:
    """A parsed filter; ``none`` is the one whose fields are all None.

    max_aspect: largest w/h and h/w. min_size, max_size: limits of sqrt(w*h) / sqrt(W*H), both inclusive.
    nms_iou: boxes overlapping an earlier one by more are dropped.
    """

    max_aspect: float | None = None
    min_size: float | None = None
    max_size: float | None = None
    nms_iou: float | None = None

    @classmethod
    def parse(cls, name: str) -> "FilterSpec":
        """The filter called ``name``; raises AlignDetError stating the grammar."""
        if name == "none":
            return cls()
        match = _NAME.fullmatch(name)
        if match is None:
            raise AlignDetError(f"{name!r} is no filter name. Write {GRAMMAR}.")
        aspect, low, high, iou = float(match[1]), int(match[2]) / 10, int(match[3]) / 10, float(match[4])
        if not 1 <= aspect < np.inf or low >= high or not 0 < iou <= 1:
            raise AlignDetError(f"filter {name!r} needs R >= 1, LL < HH and 0 < IOU <= 1. Write {GRAMMAR}.")
        return cls(aspect, low, high, iou)

    @property
    def name(self) -> str:
        """The canonical name: ``FilterSpec.parse(spec.name) == spec``."""
        if self.max_aspect is None or self.min_size is None or self.max_size is None or self.nms_iou is None:
            return "none"
        sizes = f"{round(self.min_size * 10):02d}{round(self.max_size * 10):02d}"
        return f"ratio{_decimal(self.max_aspect)}size{sizes}@{_decimal(self.nms_iou)}"


def _decimal(value: float) -> str:
    # The grammar has no exponents.
    return np.format_float_positional(value, trim="-")


@dataclass(frozen=True)
class Filtered:
    """What is left of an image's proposals: boxes [K, 4] float32, rank [K] float32, and by which rule."""

    boxes: Boxes
    rank: npt.NDArray[np.float32]
    status: Status
