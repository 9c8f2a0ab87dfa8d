"""DETR's matching with one transfer of costs a view, where mmdet's has one for every layer of every image.

Stock costs and losses still wait for the GPU, twice an image and twice a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from mmdet.models.dense_heads import ConditionalDETRHead, DABDETRHead, DeformableDETRHead, DETRHead
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmengine.dist import get_world_size
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from aligndet_train.distributed import mean_over_ranks


@dataclass(frozen=True)
class LayerTargets:
    """Of one decoder layer, B * Q queries, image by image.

    labels: [B * Q] int64, the number of classes for none. boxes: [B * Q, 4] cxcywh, shares of the image's sides, zero
    for none. positive: [B * Q] 1.0 or 0.0. sides: [B * Q, 4] px, width and height twice. positives: how many, a number.
    """

    labels: Tensor
    boxes: Tensor
    positive: Tensor
    sides: Tensor
    positives: int


class DirectQueryTargets:
    """What goes before a stock head: the same losses, from targets that are made for all layers at once."""

    _layers: ClassVar[Any] = ()

    def loss_by_feat(self: Any, scores: Tensor, boxes: Tensor, *rest: Any) -> Any:
        """scores: [L, B, Q, C]; boxes: [L, B, Q, 4]; last in ``rest``: mmdet's instances and metas of the B images."""
        self._layers = self._all_targets(scores.detach(), boxes.detach(), *rest[-2:])
        return super().loss_by_feat(scores, boxes, *rest)  # type: ignore[misc]

    def loss_by_feat_single(
        self: Any, cls_scores: Tensor, bbox_preds: Tensor, batch_gt_instances: Any, batch_img_metas: Any
    ) -> Any:
        """Class, box and IoU loss of the next layer; what comes after the decoder's layers is matched as in stock."""
        if not self._layers:
            return super().loss_by_feat_single(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas)  # type: ignore[misc]
        targets = self._layers.pop(0)
        logits, predicted = cls_scores.reshape(-1, self.cls_out_channels), bbox_preds.reshape(-1, 4)
        loss_cls = self.loss_cls(
            logits,
            targets.labels,
            torch.ones_like(targets.positive),
            avg_factor=self._class_factor(targets, logits),
        )
        weights, count = (
            targets.positive[:, None].expand(-1, 4),
            _positives_of_a_rank(targets.positives, loss_cls),
        )
        corners, wanted = (bbox_cxcywh_to_xyxy(each) * targets.sides for each in (predicted, targets.boxes))
        loss_iou = self.loss_iou(corners, wanted, weights, avg_factor=count)
        return loss_cls, self.loss_bbox(predicted, targets.boxes, weights, avg_factor=count), loss_iou

    def _class_factor(self: Any, targets: LayerTargets, like: Tensor) -> Any:
        factor = targets.positives + (len(targets.labels) - targets.positives) * self.bg_cls_weight
        if self.sync_cls_avg_factor:
            return _mean_of_ranks(factor, like)
        return max(factor, 1)

    def _all_targets(
        self: Any,
        scores: Tensor,
        boxes: Tensor,
        instances: Sequence[InstanceData],
        metas: Sequence[dict[str, Any]],
    ) -> list[LayerTargets]:
        layers, images, queries = boxes.shape[:3]
        shapes = [meta["img_shape"] for meta in metas]
        sides = torch.tensor([(width, height) * 2 for height, width in shapes], dtype=boxes.dtype)
        sides = sides.to(boxes.device, non_blocking=True)
        pixels = bbox_cxcywh_to_xyxy(boxes) * sides[:, None]
        numbers = self._matches(scores, pixels, instances, metas)
        positives = np.count_nonzero(numbers, axis=(1, 2)).tolist()
        matched = torch.from_numpy(numbers).to(boxes.device, non_blocking=True)
        if hasattr(self.assigner, "report"):
            self.assigner.report(torch.cat([each.ids for each in instances]), matched)
        labels, wanted = _looked_up(matched, instances, sides, self.num_classes)
        rows = sides[:, None].expand(-1, queries, -1).reshape(images * queries, 4)
        return [
            LayerTargets(
                labels[layer].flatten(),
                wanted[layer].flatten(0, 1),
                (matched[layer] > 0).flatten().to(wanted.dtype),
                rows,
                positives[layer],
            )
            for layer in range(layers)
        ]

    def _matches(
        self: Any,
        scores: Tensor,
        pixels: Tensor,
        instances: Sequence[InstanceData],
        metas: Sequence[dict[str, Any]],
    ) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """[L, B, Q]: 1 + the ground truth that a query got, counted over all images, or 0."""
        match_costs = own_assigner(self).match_costs
        layers, _, queries = pixels.shape[:3]
        costs = []
        for image, (wanted, meta) in enumerate(zip(instances, metas, strict=True)):
            # A query's costs are its own, so that all layers are rows of one matrix.
            predicted = InstanceData(
                scores=scores[:, image].flatten(0, 1), bboxes=pixels[:, image].flatten(0, 1)
            )
            parts = [
                cost(pred_instances=predicted, gt_instances=wanted, img_meta=meta) for cost in match_costs
            ]
            costs.append(torch.stack(parts).sum(dim=0))
        on_host = torch.split(torch.cat([cost.flatten() for cost in costs]).cpu(), [c.numel() for c in costs])
        numbers, first = np.zeros(pixels.shape[:3], dtype=np.int64), 1
        for image, (block, wanted) in enumerate(zip(on_host, instances, strict=True)):
            for layer, cost in enumerate(block.view(layers, queries, len(wanted)).numpy()):
                rows, columns = linear_sum_assignment(cost)
                numbers[layer, image, rows] = columns + first
            first += len(wanted)
        return numbers


def own_assigner(head: Any) -> Any:
    """The detector's own, also where an adapter has wrapped it: see ReportingAssigner."""
    return getattr(head.assigner, "assigner", head.assigner)


def _looked_up(
    matched: Tensor, instances: Sequence[InstanceData], sides: Tensor, no_class: int
) -> tuple[Tensor, Tensor]:
    """Labels [L, B, Q] and boxes [L, B, Q, 4], cxcywh in shares of the sides, of the numbers ``matched`` [L, B, Q]."""
    labels = torch.cat([matched.new_full((1,), no_class), *(each.labels for each in instances)])
    shares = [bbox_xyxy_to_cxcywh(each.bboxes / side) for each, side in zip(instances, sides, strict=True)]
    return labels[matched], torch.cat([sides.new_zeros((1, 4)), *shares])[matched]


def _positives_of_a_rank(count: int, like: Tensor) -> float | Tensor:
    """The mean over ranks, at least 1: a number where there is one rank, else a scalar on the device."""
    if get_world_size() == 1:
        return float(max(count, 1))
    return _mean_of_ranks(count, like)


def _mean_of_ranks(value: float, like: Tensor) -> Tensor:
    """A scalar on the device of ``like``: the mean of the ranks' values, at least 1."""
    return mean_over_ranks(like.new_full((), value)).clamp(min=1)


class DirectDETRHead(DirectQueryTargets, DETRHead):
    """Same losses as its base class."""


class DirectConditionalDETRHead(DirectQueryTargets, ConditionalDETRHead):
    """Same losses as its base class."""


class DirectDABDETRHead(DirectQueryTargets, DABDETRHead):
    """Same losses as its base class."""


class DirectDeformableDETRHead(DirectQueryTargets, DeformableDETRHead):
    """Same losses as its base class."""


DIRECT_QUERY_HEADS: dict[type, type] = {
    DETRHead: DirectDETRHead,
    ConditionalDETRHead: DirectConditionalDETRHead,
    DABDETRHead: DirectDABDETRHead,
    DeformableDETRHead: DirectDeformableDETRHead,
}
