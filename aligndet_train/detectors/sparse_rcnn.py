"""Sparse R-CNN and QueryInst: a cascade on learned proposals, matched one to one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from aligndet_train.detectors.adapter import EmbeddingTap, FamilyAdapter
from aligndet_train.detectors.neutral import NeutralAssigner
from aligndet_train.detectors.projectors import mlp_projector
from aligndet_train.detectors.query import require_fewer_proposals
from aligndet_train.detectors.two_stage import switch_off_labelled_branches

if TYPE_CHECKING:
    from aligndet_train.config import PretrainConfig

_STAGES = range(10)


class SparseRCNNAdapter(FamilyAdapter):
    """fc - ReLU - fc in the place of every stage's class predictor; Hungarian matching by box costs alone.

    Fewer proposals per image are used than there are learned ones. QueryInst's mask heads stay at their initial values.
    """

    family = "Sparse R-CNN"
    head_types = ("DIIHead",)
    defaults: ClassVar[dict[str, Any]] = {
        # Of mmdet's own recipe; no box is sampled away.
        "optimizer": {"type": "AdamW", "lr": 2.5e-5, "weight_decay": 1e-4},
        "clip_grad": 1.0,
        "sampled_boxes": None,
        "proposals_per_image": 50,
    }
    dropped_losses = frozenset({"loss_cls", "pos_acc"})
    embedding_layers = tuple(f"roi_head.bbox_head.{stage}.fc_cls." for stage in _STAGES)
    predictors = tuple(f"roi_head.bbox_head.{stage}.fc_reg." for stage in _STAGES)
    untrained = ("roi_head.mask_head.", "roi_head.mask_roi_extractor.")

    def pretraining_model(self, stock_model: Mapping[str, Any], config: "PretrainConfig") -> dict[str, Any]:
        """See FamilyAdapter. Raises AlignDetError unless fewer proposals than learned boxes are used."""
        learned = stock_model["rpn_head"].get("num_proposals", 100)
        require_fewer_proposals(stock_model["type"], learned, "learned boxes", config.proposals_per_image)
        return super().pretraining_model(stock_model, config)

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        roi_head: Any = detector.roi_head
        switch_off_labelled_branches(detector)
        stages = zip(roi_head.bbox_head, roi_head.stage_loss_weights, roi_head.bbox_assigner, strict=True)
        assigners = []
        for head, weight, assigner in stages:
            head.fc_cls = mlp_projector(head.fc_cls.in_features, embed_dims)
            head.loss_cls = EmbeddingTap(weight)
            # The head shapes scores by it; ids go past it, to the tap.
            head.num_classes = embed_dims
            assigners.append(NeutralAssigner(assigner, score=0.0, tap=head.loss_cls))
        roi_head.bbox_assigner = assigners

    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """See FamilyAdapter."""
        roi_head: Any = detector.roi_head
        return [head.loss_cls for head in roi_head.bbox_head]
