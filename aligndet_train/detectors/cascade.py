"""Cascades of RoI heads: a contrastive loss at every stage, with the stage weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

from mmdet.models import CascadeRoIHead
from mmengine.structures import InstanceData
from torch import nn

from aligndet_train.detectors.adapter import EmbeddingTap
from aligndet_train.detectors.neutral import use_loss_of
from aligndet_train.detectors.two_stage import (
    FasterRCNNAdapter,
    RoIHeadAdapter,
    embed_roi_head,
    switch_off_labelled_branches,
)

_STAGES = range(10)


class CascadeRCNNAdapter(RoIHeadAdapter):
    """Cascade R-CNN, HTC, DetectoRS, SCNet: a projector and one box regressor for all ids, at every stage.

    Stock samplers stay, as in the release: their negatives are background. Mask, semantic, global-context and relay
    branches are off and left at their initial values.
    """

    family = "Cascade R-CNN"
    detector_types: ClassVar[tuple[str, ...]] = ("CascadeRCNN", "HybridTaskCascade", "SCNet")
    head_types = (*FasterRCNNAdapter.head_types, "SCNetBBoxHead")
    defaults: ClassVar[dict[str, Any]] = {
        name: value for name, value in FasterRCNNAdapter.defaults.items() if name != "rois_per_image"
    }
    dropped_losses = frozenset({"loss_cls", "acc"})
    embedding_layers = tuple(f"roi_head.bbox_head.{stage}.fc_cls." for stage in _STAGES)
    predictors = tuple(
        f"roi_head.bbox_head.{stage}.{layer}."
        for stage in _STAGES
        for layer in ("fc_reg", "fc_reg_cls", "fc_reg_offset")
    )
    untrained = (
        "roi_head.mask_head.", "roi_head.mask_roi_extractor.", "roi_head.semantic_head.", "roi_head.glbctx_head.",
        "roi_head.feat_relay_head.", "roi_head.semantic_roi_extractor.",
    )  # fmt: skip

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        roi_head: Any = detector.roi_head
        switch_off_labelled_branches(detector)
        if detector.__class__.__name__ == "SCNet":
            # Its own always adds the masks'.
            use_loss_of(roi_head, CascadeRoIHead)
        # HTC refines boxes for its mask branch first, and for the next stage only then.
        roi_head.interleaved = False
        for head, weight in zip(roi_head.bbox_head, roi_head.stage_loss_weights, strict=True):
            embed_roi_head(head, embed_dims, EmbeddingTap(weight))
            head.__class__ = _refining(head.__class__)


@cache
def _refining(base: Any) -> type:
    """A box head whose refined boxes do not depend on class scores: its regressor serves all classes."""

    class RefiningHead(base):
        def refine_bboxes(
            self,
            sampling_results: list[Any],
            bbox_results: dict[str, Any],
            batch_img_metas: list[dict[str, Any]],
        ) -> list[InstanceData]:
            """Boxes of the next stage, per image; an image without boxes gets none (stock gives up the batch)."""
            rois, labels = bbox_results["rois"], bbox_results["bbox_targets"][0]
            if len(rois) == 0:
                return [InstanceData(bboxes=rois.new_zeros((0, 4))) for _ in batch_img_metas]
            one_class = {
                **bbox_results,
                "cls_score": rois.new_zeros((len(rois), 2)),
                "bbox_targets": (labels * 0,),
            }
            with _one_class(self):
                refined: list[InstanceData] = super().refine_bboxes(
                    sampling_results, one_class, batch_img_metas
                )
            return refined

    return RefiningHead


@contextmanager
def _one_class(head: Any) -> Iterator[None]:
    before, head.num_classes = head.num_classes, 1
    try:
        yield
    finally:
        head.num_classes = before
