"""Dense heads whose stock assigner ranks boxes by class score and box together: here by the box alone."""

import sys
from typing import Any, ClassVar

from mmengine.logging import MessageHub
from torch import nn

from aligndet_train.detectors.adapter import EmbeddingTap
from aligndet_train.detectors.dense import DenseHeadAdapter
from aligndet_train.detectors.neutral import NeutralAssigner, ScoresAside
from proposals.errors import AlignDetError


class TOODAdapter(DenseHeadAdapter):
    """TOOD: its own warm-up assignment (ATSS, by geometry) for the whole run, because the task-aligned one that
    follows ranks anchors by class score. The score's gate ``cls_prob_module`` gets no loss."""

    family = "TOOD"
    head_types = ("TOODHead",)
    embedding_layers = ("bbox_head.tood_cls.",)
    predictors = ("bbox_head.tood_reg.", "bbox_head.scales.")
    untrained = ("bbox_head.cls_prob_module.",)

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        head: Any = detector.bbox_head
        self.replace_predictor(head, lambda projector, _: ScoresAside(projector, head.loss_cls))
        head.cls_out_channels = 1
        head.initial_epoch = sys.maxsize
        head.initial_loss_cls = head.loss_cls
        # The head asks mmengine which epoch it is; outside a Runner nobody has said.
        MessageHub.get_current_instance().update_info("epoch", 0)


class RTMDetAdapter(DenseHeadAdapter):
    """RTMDet: dynamic soft label assignment, every box with the same class score."""

    family = "RTMDet"
    head_types = ("RTMDetHead", "RTMDetSepBNHead")
    kernel_size = 1
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": {"type": "AdamW", "lr": 2.5e-4, "weight_decay": 0.05},
        "clip_grad": 35.0,
    }
    embedding_layers = ("bbox_head.rtm_cls.",)
    predictors = ("bbox_head.rtm_reg.", "bbox_head.scales.")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        head: Any = detector.bbox_head
        if head.with_objectness:
            raise AlignDetError(
                "RTMDet with objectness multiplies class scores by it, which is not supported: set "
                "model.bbox_head.with_objectness=False"
            )
        super().convert(detector, embed_dims)
        head.assigner = NeutralAssigner(head.assigner, score=0.0)


class YOLOXAdapter(DenseHeadAdapter):
    """YOLOX: SimOTA, every box with the same class score. The head hands only assigned boxes to its class loss, so
    boxes of other proposals are the only negatives; objectness keeps its loss."""

    family = "YOLOX"
    head_types = ("YOLOXHead",)
    kernel_size = 1
    embedding_layers = ("bbox_head.multi_level_conv_cls.",)
    predictors = ("bbox_head.multi_level_conv_reg.", "bbox_head.multi_level_conv_obj.")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        head: Any = detector.bbox_head
        tap: EmbeddingTap = head.loss_cls
        head.assigner = NeutralAssigner(head.assigner, score=0.5, tap=tap, positives_only=True)
        # The head shapes scores by it, and encodes the one class of its positives.
        head.num_classes = embed_dims
