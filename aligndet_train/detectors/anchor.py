"""Anchor-based dense heads, assigned by the anchors' overlap with the proposals."""

from typing import Any, ClassVar

import torch
from mmdet.models import FreeAnchorRetinaHead, PISARetinaHead, RetinaHead, SSDHead, YOLOFHead
from torch import Tensor, nn

from aligndet_train.detectors.adapter import EmbeddingTap
from aligndet_train.detectors.dense import AttachedBoxLoss, DenseHeadAdapter
from aligndet_train.detectors.neutral import NeutralAssigner, ScoresAside


class RetinaNetAdapter(DenseHeadAdapter):
    """RetinaNet: 1x1 conv - ReLU - 1x1 conv to A embeddings per cell; MaxIoU assignment.

    FreeAnchor and PISA have the same layers and other losses, of class scores: they pretrain with RetinaNet's.
    """

    family = "RetinaNet"
    head_types = ("RetinaHead", "RetinaSepBNHead", "SABLRetinaHead", "FreeAnchorRetinaHead", "PISARetinaHead")
    kernel_size = 1
    # 2048 boxes an image of a batch of 2.
    defaults: ClassVar[dict[str, Any]] = {
        **DenseHeadAdapter.defaults,
        "sampled_boxes": 4096,
        "proposals_per_image": 50,
    }
    embedding_layers = ("bbox_head.retina_cls.",)
    predictors = ("bbox_head.retina_reg.", "bbox_head.retina_bbox_reg.", "bbox_head.retina_bbox_cls.")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        if isinstance(detector.bbox_head, (FreeAnchorRetinaHead, PISARetinaHead)):
            detector.bbox_head.__class__ = RetinaHead
        super().convert(detector, embed_dims)


class ATSSAdapter(DenseHeadAdapter):
    """ATSS: its assignment needs no class score. PAA's first round does not either; its second, which ranks anchors by
    class plus box loss, ranks them by box loss."""

    family = "ATSS"
    head_types = ("ATSSHead", "PAAHead")
    embedding_layers = ("bbox_head.atss_cls.",)
    predictors = ("bbox_head.atss_reg.", "bbox_head.atss_centerness.", "bbox_head.scales.")


class DDODAdapter(DenseHeadAdapter):
    """DDOD: two assigners, one per branch; both see one class score for all anchors."""

    family = "DDOD"
    head_types = ("DDODHead",)
    embedding_layers = ("bbox_head.atss_cls.",)
    predictors = ("bbox_head.atss_reg.", "bbox_head.atss_iou.", "bbox_head.scales.")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        head: Any = detector.bbox_head
        head.cls_assigner = NeutralAssigner(head.cls_assigner, score=0.0)
        head.reg_assigner = NeutralAssigner(head.reg_assigner, score=0.0)
        head.assigner = head.reg_assigner


class GFLAdapter(DenseHeadAdapter):
    """GFL: the weight of a box loss, the class score, is the same for every positive; ATSS assignment."""

    family = "GFL"
    head_types = ("GFLHead",)
    embedding_layers = ("bbox_head.gfl_cls.",)
    predictors = ("bbox_head.gfl_reg.", "bbox_head.scales.")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        head: Any = detector.bbox_head
        self.replace_predictor(head, lambda projector, _: ScoresAside(projector, head.loss_cls))
        head.cls_out_channels = 1


class GuidedAnchoringAdapter(DenseHeadAdapter):
    """RetinaNet with guided anchors: their places and shapes are learned on the proposals with their own losses."""

    family = "Guided anchoring"
    head_types = ("GARetinaHead",)
    kernel_size = 1
    defaults: ClassVar[dict[str, Any]] = {**RetinaNetAdapter.defaults, "clip_grad": 35.0}
    embedding_layers = ("bbox_head.retina_cls.",)
    predictors = ("bbox_head.retina_reg.", "bbox_head.conv_loc.", "bbox_head.conv_shape.")

    def projector(self, stock: nn.Module, embed_dims: int, anchors: int) -> nn.Module:
        """As every dense head's; the stock predictor takes a mask, which is None in training."""
        return _Unmasked(super().projector(stock, embed_dims, anchors))


class _Unmasked(nn.Module):
    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, features: Tensor, mask: None = None) -> Tensor:
        embeddings: Tensor = self.projector(features)
        return embeddings


class _EmbeddingSSDHead(SSDHead):
    """SSDHead computes its class loss itself, from scores of one image: the tap gets them there."""

    loss_cls: EmbeddingTap

    def loss_by_feat_single(
        self, cls_score: Tensor, bbox_pred: Tensor, anchor: Tensor, labels: Tensor, label_weights: Tensor,
        bbox_targets: Tensor, bbox_weights: Tensor, avg_factor: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As the stock head's, for one image: cls_score is [N, D]."""
        self.loss_cls(cls_score, labels, label_weights)
        one_class = torch.zeros_like(labels)
        no_scores = cls_score.new_zeros((len(labels), 1))
        losses: tuple[Tensor, Tensor] = super().loss_by_feat_single(
            no_scores, bbox_pred, anchor, one_class, label_weights, bbox_targets, bbox_weights, avg_factor
        )
        return losses


class SSDAdapter(DenseHeadAdapter):
    """SSD: an embedding per default box on every level. Its hard-negative mining, a ranking by class loss, goes, as
    does PISA's reweighting: ``sampled_boxes`` limits the negatives."""

    family = "SSD"
    head_types = ("SSDHead", "PISASSDHead")
    embedding_layers = ("bbox_head.cls_convs.",)
    predictors = ("bbox_head.reg_convs.",)
    head_class = _EmbeddingSSDHead


class _EmbeddingYOLOFHead(AttachedBoxLoss, YOLOFHead):
    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> embeddings [B, A * D, H, W] and box deltas [B, A * 4, H, W]."""
        return self.cls_score(self.cls_subnet(x)), self.bbox_pred(self.bbox_subnet(x))


class YOLOFAdapter(DenseHeadAdapter):
    """YOLOF: uniform assignment by geometry. The class score is multiplied by an implicit objectness, which without
    classes no loss reaches: that layer stays at its initial value."""

    family = "YOLOF"
    head_types = ("YOLOFHead",)
    embedding_layers = ("bbox_head.cls_score.",)
    predictors = ("bbox_head.bbox_pred.",)
    untrained = ("bbox_head.object_pred.",)
    head_class = _EmbeddingYOLOFHead
