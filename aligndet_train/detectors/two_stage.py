"""Two-stage detectors: an RPN trained on the proposals as they are, and one RoI head that embeds its boxes."""

from typing import Any, ClassVar

from mmdet.models.task_modules import RandomSampler
from torch import Tensor, nn

from aligndet_train.detectors.adapter import BACKGROUND, EmbeddingTap, FamilyAdapter
from aligndet_train.detectors.projectors import mlp_projector

# Of the release: positives only, ground-truth boxes among the candidates.
_SAMPLED_PER_IMAGE = 4096


class FasterRCNNAdapter(FamilyAdapter):
    """Faster R-CNN: fc - ReLU - fc on the RoI head's shared features; one box regressor for all ids.

    The stock head and assigners stay. The release trains a Shared4Conv1FC head (METHOD section 4): a config that
    names one is converted as well.
    """

    family = "Faster R-CNN"
    head_types = ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
        # The sampler below limits the boxes, per image.
        "sampled_boxes": None,
    }
    dropped_losses = frozenset({"loss_cls", "acc"})
    embedding_layers = ("roi_head.bbox_head.fc_cls.",)
    predictors = ("roi_head.bbox_head.fc_reg.",)

    @classmethod
    def matches(cls, detector_type: str, head_type: str) -> bool:
        """Only the plain detector: masks and cascades are families of their own."""
        return detector_type == "FasterRCNN" and head_type in cls.head_types

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter. The sampler becomes the release's: positives only."""
        roi_head: Any = detector.roi_head
        head = roi_head.bbox_head
        head.fc_cls = mlp_projector(head.fc_cls.in_features, embed_dims)
        # An id is no class: a regressor per class would have no row for it.
        head.fc_reg = nn.Linear(head.fc_reg.in_features, 4)
        nn.init.normal_(head.fc_reg.weight, std=0.001)
        nn.init.zeros_(head.fc_reg.bias)
        head.reg_class_agnostic = True
        head.num_classes = BACKGROUND
        head.loss_cls = EmbeddingTap()
        roi_head.bbox_sampler = RandomSampler(
            num=_SAMPLED_PER_IMAGE, pos_fraction=1.0, neg_pos_ub=0, add_gt_as_proposals=True
        )

    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """See FamilyAdapter."""
        roi_head: Any = detector.roi_head
        return [roi_head.bbox_head.loss_cls]

    def to_stock_shape(self, name: str, value: Tensor, stock: Tensor) -> Tensor | None:
        """The class-agnostic box regressor is repeated for every class of a stock one."""
        if name.startswith(self.predictors) and stock.shape[0] % value.shape[0] == 0:
            return value.repeat(stock.shape[0] // value.shape[0], *[1] * (value.ndim - 1))
        return super().to_stock_shape(name, value, stock)
