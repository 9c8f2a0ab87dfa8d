"""The order of an image's boxes, best first. NMS runs in this order, so it decides which boxes survive."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes

RankName = Literal["opencv"]
RANKS: tuple[RankName, ...] = get_args(RankName)


def order(
    boxes: Boxes, rank: npt.NDArray[np.float32], name: RankName
) -> tuple[Boxes, npt.NDArray[np.float32]]:
    """Boxes and ranks in the order called ``name``, rank ascending.

    boxes: [N, 4] float32 xyxy px, already filtered by shape and size, in OpenCV's order; rank: [N] float32.
    ``opencv``: as they come, which is OpenCV's own seeded order.
    """
    return boxes, rank
