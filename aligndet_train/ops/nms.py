"""Suppression of overlapping boxes, called the way mmcv 2.1 calls its compiled ops.

Soft-NMS and NMS-match only ever see CPU tensors: mmcv's wrappers copy them there first.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aligndet_train.ops._kernels import kernels, wide

Floats = NDArray[np.floating]
_NAIVE, _LINEAR, _GAUSSIAN = 0, 1, 2


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy NMS of ``boxes`` [N, 4] (xyxy) by ``scores`` [N]: int64 indices of the kept, best first.

    ``offset`` 1 counts a box's far edge as a pixel of it, as old mmdet does.
    """
    far_edge = boxes.new_tensor([0, 0, offset, offset]) if offset else 0
    kept: Tensor = kernels.nms(wide(boxes + far_edge), wide(scores), iou_threshold)
    return kept


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017) of ``boxes`` [N, 4]: int64 indices of the K survivors, best first.

    Writes ``(x1, y1, x2, y2, decayed score)`` into the first K rows of ``dets`` [N, 5].
    ``method``: 0 drops what overlaps, 1 decays it by ``1 - IoU``, 2 decays all by ``exp(-IoU²/sigma)``.
    """
    corners, left = _numpy(boxes), _numpy(scores).copy()
    alive = np.ones(len(left), dtype=bool)
    order: list[int] = []
    while alive.any():
        best = int(np.where(alive, left, -np.inf).argmax())
        order.append(best)
        alive[best] = False
        rest = np.flatnonzero(alive)
        left[rest] *= _decay(_ious(corners[best], corners[rest], offset), iou_threshold, sigma, method)
        alive[rest[left[rest] < min_score]] = False
    kept = np.array(order, dtype=np.int64)
    dets[: len(kept)] = torch.from_numpy(np.column_stack([corners[kept], left[kept]])).to(dets.dtype)
    return torch.from_numpy(kept)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of ``dets`` [N, 5]: each kept box's index, then those it suppresses, all in score order."""
    rows = _numpy(dets)
    waiting = np.argsort(-rows[:, 4], kind="stable")
    groups: list[list[int]] = []
    while waiting.size:
        best, waiting = waiting[0], waiting[1:]
        suppressed = _ious(rows[best, :4], rows[waiting, :4], 0) >= iou_threshold
        groups.append([int(best), *waiting[suppressed].tolist()])
        waiting = waiting[~suppressed]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Write the IoU (``mode`` 0) or the covered share of box 1 (1) into ``ious``: [N, M], ``aligned`` [N]."""
    first, second = wide(bboxes1), wide(bboxes2)
    area1, area2 = ((box[:, 2:] - box[:, :2] + offset).prod(-1) for box in (first, second))
    if not aligned:
        first, area1 = first[:, None], area1[:, None]
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    common = (high - low + offset).clamp(min=0).prod(-1)
    whole = area1 + area2 - common if mode == 0 else area1.expand_as(common)
    ious.copy_(common / whole.clamp(min=offset))


def _decay(iou: Floats, iou_threshold: float, sigma: float, method: int) -> Floats:
    if method == _GAUSSIAN:
        gaussian: Floats = np.exp(-(iou**2) / sigma)
        return gaussian
    factor = np.zeros_like(iou) if method == _NAIVE else 1 - iou
    return np.where(iou >= iou_threshold, factor, 1).astype(iou.dtype)


def _ious(box: Floats, others: Floats, offset: int) -> Floats:
    extent = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + offset
    common = extent.clip(min=0).prod(-1)
    area = (box[2:] - box[:2] + offset).prod()
    areas = (others[:, 2:] - others[:, :2] + offset).prod(-1)
    # Two empty boxes give 0/0: compared as not overlapping, decayed by nothing.
    union = area + areas - common
    iou: Floats = np.divide(common, union, out=np.zeros_like(common), where=union != 0)
    return iou


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = wide(tensor.detach()).numpy()
    return array
