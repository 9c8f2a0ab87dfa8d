"""mmdet's MaxIoUAssigner without its loop over ground-truth boxes, each turn of which waits for the GPU."""

from typing import Any

import torch
from mmdet.models.task_modules import AssignResult, MaxIoUAssigner
from torch import Tensor


class LooplessMaxIoUAssigner(MaxIoUAssigner):
    """Same assignment as its base class, as a fixed number of tensor operations."""

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> Any:
        """overlaps: [K, N] IoU of ground truth and boxes; gt_labels: [K]. Returns mmdet's AssignResult."""
        if 0 in overlaps.shape:
            return super().assign_wrt_overlaps(overlaps, gt_labels)
        best, best_gt = overlaps.max(dim=0)
        assigned = torch.full_like(best_gt, -1)
        low, high = self.neg_iou_thr if isinstance(self.neg_iou_thr, tuple) else (0.0, self.neg_iou_thr)
        assigned = torch.where((best >= low) & (best < high), torch.zeros_like(assigned), assigned)
        assigned = torch.where(best >= self.pos_iou_thr, best_gt + 1, assigned)
        if self.match_low_quality:
            claimed = self._claimed(overlaps)
            assigned = torch.where(claimed > 0, claimed, assigned)
        labels = torch.where(assigned > 0, gt_labels[assigned.clamp(min=1) - 1], -1)
        return AssignResult(len(overlaps), assigned, best, labels=labels)

    def _claimed(self, overlaps: Tensor) -> Tensor:
        """[N]: 1 + the last ground truth whose best box this is, or 0."""
        gt_best, gt_best_box = overlaps.max(dim=1)
        numbers = torch.arange(1, len(overlaps) + 1, device=overlaps.device)
        numbers = torch.where(gt_best >= self.min_pos_iou, numbers, 0)
        if self.gt_max_assign_all:
            return torch.where(overlaps == gt_best[:, None], numbers[:, None], 0).amax(dim=0)
        nothing = numbers.new_zeros(overlaps.shape[1])
        return nothing.scatter_reduce(0, gt_best_box, numbers, "amax")
