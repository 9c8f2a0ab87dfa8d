"""Losses that stock code divides by a process's own number of boxes, divided by the mean over ranks instead.

A RoI head divides its box loss by the number of boxes sampled on this process. The mean over ranks of such losses
is not the loss of the whole batch unless all counts are equal. Heads of points and queries
average their counts themselves, those of anchors (RetinaNet, SSD, RPN) do not.
"""

from typing import Any

import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import nn

from aligndet_train.distributed import mean_over_ranks


def roi_box_losses(detector: nn.Module) -> dict[str, int]:
    """{name of a stock loss: its stage} for the box losses of RoI heads that use BBoxHead's own ``loss``."""
    roi_head: Any = getattr(detector, "roi_head", None)
    heads = getattr(roi_head, "bbox_head", None)
    if heads is None:
        return {}
    cascade = isinstance(heads, nn.ModuleList)
    stages = list(heads) if cascade else [heads]
    names = [f"s{stage}.loss_bbox" if cascade else "loss_bbox" for stage in range(len(stages))]
    return {
        name: stage
        for stage, (name, head) in enumerate(zip(names, stages, strict=True))
        if isinstance(head, BBoxHead) and type(head).loss is BBoxHead.loss
    }


def normalised_by_all_ranks(
    losses: dict[str, Any], stages: dict[str, int], counts: list[int], device: torch.device
) -> dict[str, Any]:
    """``losses`` with those of ``stages`` scaled from this rank's box count to the mean over ranks.

    counts: this rank's sampled boxes by stage. Every rank must call it in every step.
    """
    if not stages:
        return losses
    own = torch.tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    factors = own / mean_over_ranks(own).clamp(min=1e-6)
    return losses | {name: losses[name] * factors[stage] for name, stage in stages.items() if name in losses}
