"""For heads that use class scores beyond ``loss_cls``: every box gets the same score, so geometry alone decides.

A proposal has an id and no class, and an embedding is no score. Where a stock assigner adds a class cost to a box
cost, or a stock box loss is weighted by the class score, the honest value is one constant for all boxes.
"""

from functools import cache
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from aligndet_train.detectors.adapter import EmbeddingTap, assigned_ids


class NeutralAssigner:
    """A stock assigner whose class cost is the same for every box.

    score: what every box scores; 0 for an assigner that takes logits, 0.5 for one that takes probabilities.
    tap: for heads whose class target is no label. Then result labels are 0 (one class), and the ids go to the tap:
    of every prior, or with ``positives_only`` of the assigned ones, image after image. Without a tap the result's
    labels are the ids.
    """

    def __init__(
        self, stock: Any, score: float, tap: EmbeddingTap | None = None, positives_only: bool = False
    ) -> None:
        self.stock, self.score, self.tap, self.positives_only = stock, score, tap, positives_only

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock assigner's; ``pred_instances.scores`` and ``gt_instances.labels`` have no influence."""
        boxes = InstanceData(**{name: value for name, value in pred_instances.items() if name != "scores"})
        boxes.scores = boxes.priors.new_full((len(boxes.priors), 1), self.score)
        one_class = InstanceData(bboxes=gt_instances.bboxes, labels=torch.zeros_like(gt_instances.labels))
        result = self.stock.assign(
            pred_instances=boxes, gt_instances=one_class, gt_instances_ignore=gt_instances_ignore, **kwargs
        )
        ids = assigned_ids(gt_instances.labels, result.gt_inds)
        if self.tap is None:
            result.labels = ids
        else:
            self.tap.expect(ids[result.gt_inds > 0] if self.positives_only else ids)
        return result


class ScoresAside(nn.Module):
    """A dense head's class predictor that gives its embeddings to the tap, and the head a score of 0 everywhere.

    projector: [B, C, H, W] -> [B, D, H, W]. The head must call ``loss_cls`` once per level, in the order of levels.
    """

    def __init__(self, projector: nn.Module, tap: EmbeddingTap) -> None:
        super().__init__()
        self.projector, self.tap = projector, tap

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> zeros [B, 1, H, W]; embeddings are held as [B * H * W, D]."""
        embeddings: Tensor = self.projector(features)
        self.tap.hold(embeddings.permute(0, 2, 3, 1).reshape(-1, embeddings.shape[1]))
        return features.new_zeros((len(features), 1, *features.shape[-2:]))


def switch_off(module: nn.Module, *properties: str) -> None:
    """Let stock code believe that ``module`` has not what ``properties`` (like ``with_mask``) say it has."""
    _override(module, tuple((name, False) for name in properties))


def use_loss_of(module: nn.Module, base: Any) -> None:
    """Let ``module`` compute its losses as its parent class ``base`` does, without what it adds."""
    _override(module, (("loss", base.loss),))


def _override(module: Any, attributes: tuple[tuple[str, Any], ...]) -> None:
    module.__class__ = _with_attributes(module.__class__, attributes)


@cache
def _with_attributes(base: Any, attributes: tuple[tuple[str, Any], ...]) -> type:
    return type(base.__name__, (base,), dict(attributes))
