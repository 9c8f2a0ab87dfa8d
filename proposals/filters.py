"""Which proposals of an image are kept: aspect and relative size limits, then non-maximum suppression."""

import numpy as np
import numpy.typing as npt

from proposals.boxes import Boxes, clip, whole_image
from proposals.filter_spec import Filtered, FilterSpec, Status
from proposals.nms import nms
from proposals.ranking import RankName, order

FALLBACK_MIN_SIDE = 32.0


def apply_filter(
    boxes: Boxes,
    rank: npt.NDArray[np.float32],
    width: int,
    height: int,
    spec: FilterSpec,
    rank_name: RankName,
) -> Filtered:
    """Keep the proposals of a ``width`` x ``height`` image that ``spec`` allows, best first.

    boxes: [N, 4] float32 xyxy px of the original image, best first; rank: [N] float32.
    The kept boxes are ordered by ``rank_name``, then NMS runs in that order. An image left without a box falls
    back, in turn: without the size rule; any box of at least 32 x 32 px; the whole image. ``status`` tells which.
    """
    boxes = clip(boxes, width, height)
    for status, mask in _rules(boxes, width, height, spec):
        if mask.any():
            ordered, new_rank = order(boxes[mask], rank[mask], rank_name, width, height)
            keep = slice(None) if spec.nms_iou is None else nms(ordered, spec.nms_iou)
            return Filtered(ordered[keep], new_rank[keep], status)
    return Filtered(whole_image(width, height), np.zeros(1, dtype=np.float32), "fallback_whole_image")


def _rules(
    boxes: Boxes, width: int, height: int, spec: FilterSpec
) -> list[tuple[Status, npt.NDArray[np.bool_]]]:
    w = boxes[:, 2].astype(np.float64) - boxes[:, 0]
    h = boxes[:, 3].astype(np.float64) - boxes[:, 1]
    solid = (w > 0) & (h > 0)
    if spec.max_aspect is None or spec.min_size is None or spec.max_size is None:
        return [("ok", solid)]
    shape = solid & (w <= spec.max_aspect * h) & (h <= spec.max_aspect * w)
    relative = np.sqrt(np.where(solid, w * h, 0.0) / (width * height))
    size = (relative >= spec.min_size) & (relative <= spec.max_size)
    large = (w >= FALLBACK_MIN_SIDE) & (h >= FALLBACK_MIN_SIDE)
    return [("ok", shape & size), ("fallback_no_size", shape), ("fallback_min_side", large)]
