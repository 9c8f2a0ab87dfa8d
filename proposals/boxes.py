"""Box geometry. One convention: xyxy, float32, pixels, half-open (width = x2 - x1).

Every function takes and returns [N, 4] arrays and accepts N = 0.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import kernel

Boxes = npt.NDArray[np.float32]


def as_boxes(values: npt.ArrayLike) -> Boxes:
    """``values`` as a contiguous [N, 4] float32 array; raises ValueError when its size is no multiple of 4."""
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1, 4)


def areas(boxes: Boxes) -> npt.NDArray[np.float64]:
    """[N] float64, square pixels; a degenerate box (x2 <= x1 or y2 <= y1) has area 0."""
    sides = np.maximum(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0.0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def pairwise_iou(first: Boxes, second: Boxes) -> npt.NDArray[np.float64]:
    """[N, M] float64 intersection over union; 0 where both boxes are degenerate."""
    low = np.maximum(first[:, None, :2], second[None, :, :2]).astype(np.float64)
    high = np.minimum(first[:, None, 2:], second[None, :, 2:]).astype(np.float64)
    sides = np.maximum(high - low, 0.0)
    inter = sides[..., 0] * sides[..., 1]
    union = areas(first)[:, None] + areas(second)[None, :] - inter
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))


def clip(boxes: Boxes, width: int, height: int) -> Boxes:
    """Boxes cut to the image [0, width] x [0, height]; one that lies outside becomes degenerate on the border."""
    limits = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes, np.float32(0), limits)


def scale(boxes: Boxes, scale_x: float, scale_y: float) -> Boxes:
    """Boxes with x multiplied by ``scale_x`` and y by ``scale_y``, computed in float64, returned as float32."""
    factors = np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float64)
    return (boxes * factors).astype(np.float32)


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
