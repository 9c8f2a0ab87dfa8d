"""Box geometry. One convention: xyxy, float32, pixels, half-open (width = x2 - x1).

Every function takes and returns [N, 4] arrays and accepts N = 0.
"""

import numpy as np
import numpy.typing as npt

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
    sides = np.array([width, height, width, height])
    limits = sides.astype(np.float32)
    # Above 2^24 px a side may be rounded up, and a box would leave its image.
    limits = np.where(limits > sides, np.nextafter(limits, np.float32(0)), limits)
    return np.clip(boxes, np.float32(0), limits)


def whole_image(width: int, height: int) -> Boxes:
    """[1, 4]: the one box that is all of the image."""
    return clip(np.array([[0, 0, np.inf, np.inf]], dtype=np.float32), width, height)


def scale(boxes: Boxes, scale_x: float, scale_y: float) -> Boxes:
    """Boxes with x multiplied by ``scale_x`` and y by ``scale_y``, computed in float64, returned as float32."""
    factors = np.array([scale_x, scale_y, scale_x, scale_y], dtype=np.float64)
    return (boxes * factors).astype(np.float32)
