"""Greedy non-maximum suppression of boxes in the convention of `proposals.boxes`.

Apart from them because it is compiled: what only reads a dataset imports no compiler.
"""

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes
from proposals.selective_search.jit import kernel


def nms(boxes: Boxes, iou_threshold: float) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression in the order given (first is best).

    Returns the ascending indices [K] int64 of boxes whose IoU with every kept earlier box is <= ``iou_threshold``.
    """
    return np.flatnonzero(_survivors(np.ascontiguousarray(boxes, dtype=np.float64), iou_threshold))


@kernel("boolean[::1](float64[:, ::1], float64)")
def _survivors(boxes: npt.NDArray[np.float64], iou_threshold: float) -> npt.NDArray[np.bool_]:
    count = boxes.shape[0]
    area = np.empty(count)
    for i in range(count):
        area[i] = max(boxes[i, 2] - boxes[i, 0], 0.0) * max(boxes[i, 3] - boxes[i, 1], 0.0)
    alive = np.ones(count, dtype=np.bool_)
    for i in range(count):
        if not alive[i]:
            continue
        for j in range(i + 1, count):
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            if not alive[j] or width <= 0.0 or height <= 0.0:
                continue
            inter = width * height
            if inter / (area[i] + area[j] - inter) > iou_threshold:
                alive[j] = False
    return alive
