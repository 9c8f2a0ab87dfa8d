"""Finding the stock parts of a detector that have an equal."""

from collections.abc import Iterator
from typing import Any

from mmdet.models.dense_heads import FCOSHead
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.task_modules import (
    BBoxL1Cost,
    ClassificationCost,
    FocalLossCost,
    HungarianAssigner,
    IoUCost,
    MaxIoUAssigner,
)
from mmdet.models.task_modules.samplers import BaseSampler
from torch import nn

from aligndet_train.equals.fcos_targets import DirectFCOSHead
from aligndet_train.equals.max_iou import LooplessMaxIoUAssigner
from aligndet_train.equals.query_targets import DIRECT_QUERY_HEADS, own_assigner
from aligndet_train.equals.sampling import per_image

# A query's costs do not depend on the other queries.
_COSTS_OF_ONE_QUERY = (BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost)


def put_equals_in_place(detector: nn.Module, *, samplers: bool = True) -> None:
    """Exchange the classes of stock assigners and heads of ``detector`` for ours, and seed its samplers by image.

    Subclasses of stock parts are left alone: what they override is not known. samplers: False leaves samplers alone,
    whose draws of our own have stock's distribution, but not its values.
    """
    for module in detector.modules():
        if type(module) is FCOSHead:
            module.__class__ = DirectFCOSHead
        elif type(module) in DIRECT_QUERY_HEADS and _matches_as_stock(module):
            module.__class__ = DIRECT_QUERY_HEADS[type(module)]
        for part in _parts(module):
            if type(part) is MaxIoUAssigner:
                part.__class__ = LooplessMaxIoUAssigner
            elif samplers and isinstance(part, BaseSampler):
                per_image(part)


def _matches_as_stock(head: Any) -> bool:
    assigner = own_assigner(head)
    return (
        type(assigner) is HungarianAssigner
        and all(type(cost) in _COSTS_OF_ONE_QUERY for cost in assigner.match_costs)
        and not isinstance(head.loss_cls, QualityFocalLoss)
    )


def _parts(module: nn.Module) -> Iterator[Any]:
    """What hangs on a module without being one: assigners and samplers, alone or a list of them by stage."""
    for value in vars(module).values():
        yield from value if isinstance(value, list) else (value,)
