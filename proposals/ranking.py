"""The order of an image's boxes, best first. NMS runs in this order, so it decides which boxes survive."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes

RankName = Literal["agreement", "opencv"]


def order(
    boxes: Boxes, rank: npt.NDArray[np.float32], name: RankName, width: int, height: int
) -> tuple[Boxes, npt.NDArray[np.float32]]:
    """Boxes and ranks in the order called ``name``, rank ascending.

    boxes: [N, 4] float32 xyxy px of a ``width`` x ``height`` image, already filtered by shape and size, in OpenCV's
    order; rank: [N] float32.
    ``opencv``: as they come, which is OpenCV's own seeded order, close to random.
    ``agreement``: by how many others overlap a box and how well (see proposals.selective_search.agreement); rank is the
    position. Boxes of one score keep OpenCV's order.
    """
    if name == "opencv":
        return boxes, rank
    from proposals.selective_search.agreement import agreement_score

    best_first = np.argsort(-agreement_score(boxes, width, height), kind="stable")
    return boxes[best_first], np.arange(len(boxes), dtype=np.float32)
