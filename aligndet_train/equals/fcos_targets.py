"""FCOS' target assignment without a Python range as an index and without indices that wait for the GPU."""

import torch
from mmdet.models.dense_heads import FCOSHead
from mmengine.structures import InstanceData
from torch import Tensor


class DirectFCOSHead(FCOSHead):
    """Same targets as its base class."""

    def _get_targets_single(
        self,
        gt_instances: InstanceData,
        points: Tensor,
        regress_ranges: Tensor,
        num_points_per_lvl: list[int],
    ) -> tuple[Tensor, Tensor]:
        """Labels [P] and distances [P, 4] (left, top, right, bottom, px) of points [P, 2] in one image."""
        boxes, labels = gt_instances.bboxes, gt_instances.labels
        if len(boxes) == 0:
            return labels.new_full((len(points),), self.num_classes), boxes.new_zeros((len(points), 4))
        distances = torch.cat(
            [points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]], dim=-1
        )
        farthest = distances.amax(dim=-1)
        allowed = (farthest >= regress_ranges[:, None, 0]) & (farthest <= regress_ranges[:, None, 1])
        if self.center_sampling:
            allowed &= self._in_centre(points, boxes, num_points_per_lvl)
        else:
            allowed &= distances.amin(dim=-1) > 0
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        area, smallest = torch.where(allowed, areas[None], _INF).min(dim=1)
        found = torch.where(area == _INF, self.num_classes, labels[smallest])
        targets = distances.gather(1, smallest[:, None, None].expand(-1, 1, 4))[:, 0]
        return found, targets

    def _in_centre(self, points: Tensor, boxes: Tensor, num_points_per_lvl: list[int]) -> Tensor:
        """[P, K] bool: the point lies within ``center_sample_radius`` strides of the box's centre, and in the box."""
        reach = torch.cat(
            [
                points.new_full((count,), stride * self.center_sample_radius)
                for count, stride in zip(num_points_per_lvl, self.strides, strict=True)
            ]
        )[:, None, None]
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]
        lowest = torch.maximum(centres - reach, boxes[None, :, :2])
        highest = torch.minimum(centres + reach, boxes[None, :, 2:])
        inside = torch.minimum(points[:, None] - lowest, highest - points[:, None])
        return inside.amin(dim=-1) > 0


# mmdet's own stand-in for infinity, which a box's area must stay below.
_INF = 1e8
