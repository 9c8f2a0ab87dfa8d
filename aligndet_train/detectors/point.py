"""Point-based dense heads: FCOS."""

from typing import Any, ClassVar

from torch import nn

from aligndet_train.detectors.adapter import BACKGROUND, EmbeddingTap, FamilyAdapter
from aligndet_train.detectors.projectors import conv_projector


class FCOSAdapter(FamilyAdapter):
    """FCOS: 3x3 conv - ReLU - 1x1 conv on the class tower; points assigned by centre and regression range."""

    family = "FCOS"
    head_types = ("FCOSHead",)
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
        # Of mmdet's own FCOS recipe.
        "clip_grad": 35.0,
    }
    dropped_losses = frozenset({"loss_cls"})
    embedding_layers = ("bbox_head.conv_cls.",)
    predictors = ("bbox_head.conv_reg.", "bbox_head.conv_centerness.", "bbox_head.scales.")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        head: Any = detector.bbox_head
        head.conv_cls = conv_projector(head.feat_channels, embed_dims, kernel_size=3)
        head.cls_out_channels = embed_dims
        head.num_classes = BACKGROUND
        head.loss_cls = EmbeddingTap()

    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """See FamilyAdapter."""
        head: Any = detector.bbox_head
        return [head.loss_cls]
