"""What this package takes and returns."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Mode = Literal["single", "fast", "quality"]
Engine = Literal["fast", "opencv"]
MODES: tuple[Mode, ...] = get_args(Mode)
ENGINES: tuple[Engine, ...] = get_args(Engine)


@dataclass(frozen=True)
class Proposals:
    """Boxes of one image, best first.

    boxes: [N, 4] float32, xyxy pixels of the image given, half-open.
    rank: [N] float32, ascending; the position in OpenCV's order (0 is the first box).
    """

    boxes: npt.NDArray[np.float32]
    rank: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.boxes)
