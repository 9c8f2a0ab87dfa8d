"""Two-stage detectors: an RPN trained on the proposals as they are, and one RoI head that embeds its boxes."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mmdet.models import PISARoIHead, StandardRoIHead, TwoStageDetector, TwoStagePanopticSegmentor
from torch import Tensor, nn

from aligndet_train.detectors.adapter import BACKGROUND, EmbeddingTap, FamilyAdapter
from aligndet_train.detectors.class_names import class_name
from aligndet_train.detectors.neutral import switch_off, use_loss_of
from aligndet_train.detectors.projectors import mlp_projector
from aligndet_train.detectors.roiless import take_no_rois
from proposals.errors import AlignDetError

if TYPE_CHECKING:
    from aligndet_train.config import PretrainConfig

# Branches that need labels of pixels, or of the whole image, by the property that announces them.
LABELLED_BRANCHES = ("with_mask", "with_semantic", "with_glbctx", "with_feat_relay")


def embed_roi_head(head: Any, embed_dims: int, tap: EmbeddingTap) -> None:
    """fc - ReLU - fc as the class predictor of a RoI ``head``, and one box regressor for all ids, in place."""
    head.fc_cls = mlp_projector(head.fc_cls.in_features, embed_dims)
    if isinstance(getattr(head, "fc_reg", None), nn.Linear) and not head.reg_class_agnostic:
        # An id is no class: a regressor per class would have no row for it.
        head.fc_reg = nn.Linear(head.fc_reg.in_features, 4)
        nn.init.normal_(head.fc_reg.weight, std=0.001)
        nn.init.zeros_(head.fc_reg.bias)
        head.reg_class_agnostic = True
    head.num_classes = BACKGROUND
    head.loss_cls = tap
    take_no_rois(head)


def switch_off_labelled_branches(detector: Any) -> None:
    """Masks, semantic maps and image-level classes: proposals have no labels for them."""
    if isinstance(detector, TwoStagePanopticSegmentor):
        use_loss_of(detector, TwoStageDetector)
    present = tuple(name for name in LABELLED_BRANCHES if getattr(detector.roi_head, name, False))
    switch_off(detector.roi_head, *present)


def repeated_regressor(value: Tensor, stock: Tensor) -> Tensor:
    """A class-agnostic box regressor, for every class of a stock one; unchanged when no repetition fits."""
    if stock.ndim == 0 or stock.shape[1:] != value.shape[1:] or stock.shape[0] % value.shape[0]:
        return value
    return value.repeat(stock.shape[0] // value.shape[0], *[1] * (value.ndim - 1))


def _require_plain_sampler(sampler: Mapping[str, Any]) -> None:
    if class_name(sampler["type"]) == "ScoreHLRSampler":
        raise AlignDetError(
            "PISA's sampler ranks by class scores, which proposals have not: set pretrain.rois_per_image"
        )


class RoIHeadAdapter(FamilyAdapter):
    """What detectors with one RoI head, or one for every stage, have in common: a box regressor for all ids."""

    detector_types: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def matches(cls, detector_type: str, head_type: str) -> bool:
        """By both: the same box heads serve detectors that need other adapters."""
        return detector_type in cls.detector_types and head_type in cls.head_types

    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """See FamilyAdapter."""
        roi_head: Any = detector.roi_head
        found = roi_head.bbox_head
        heads: list[Any] = list(found) if isinstance(found, nn.ModuleList) else [found]
        return [head.loss_cls for head in heads]

    def to_stock_shape(self, name: str, value: Tensor, stock: Tensor) -> Tensor | None:
        """The class-agnostic box regressor is repeated for every class of a stock one."""
        if name.startswith(self.predictors):
            value = repeated_regressor(value, stock)
        return super().to_stock_shape(name, value, stock)


class FasterRCNNAdapter(RoIHeadAdapter):
    """Faster R-CNN and what is built on it: fc - ReLU - fc on the RoI head's features; one box regressor for all ids.

    The stock head and assigners stay; the sampler becomes the release's (``rois_per_image``). The release trains a
    Shared4Conv1FC head, which the shipped configs name. Mask, semantic and point heads are left at their initial
    values: there are no masks. PISA's reweighting, a ranking by class score, is off. A proposal of TridentNet has one
    id in all branches.
    """

    family = "Faster R-CNN"
    detector_types: ClassVar[tuple[str, ...]] = (
        "FasterRCNN", "MaskRCNN", "GridRCNN", "MaskScoringRCNN", "PointRend", "TridentFasterRCNN", "PanopticFPN",
    )  # fmt: skip
    head_types = (
        "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead", "DoubleConvFCBBoxHead", "BBoxHead",
        "SABLHead",
    )  # fmt: skip
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
        # The sampler limits the boxes, per image.
        "sampled_boxes": None,
        "rois_per_image": 4096,
    }
    dropped_losses = frozenset({"loss_cls", "acc"})
    embedding_layers = ("roi_head.bbox_head.fc_cls.",)
    predictors = (
        "roi_head.bbox_head.fc_reg.", "roi_head.bbox_head.fc_reg_cls.", "roi_head.bbox_head.fc_reg_offset.",
        "roi_head.grid_head.deconv2.",
    )  # fmt: skip
    untrained = (
        "roi_head.mask_head.", "roi_head.mask_iou_head.", "roi_head.point_head.", "roi_head.mask_roi_extractor.",
        "semantic_head.", "panoptic_fusion_head.",
    )  # fmt: skip

    def pretraining_model(self, stock_model: Mapping[str, Any], config: "PretrainConfig") -> dict[str, Any]:
        """With the release's RoI sampler: positives alone, proposals among the candidates.

        Raises AlignDetError when there is none to replace, or the one to be kept ranks by class scores.
        """
        model = copy.deepcopy(dict(stock_model))
        training = (model.get("train_cfg") or {}).get("rcnn")
        if not training:
            raise AlignDetError("the model has no train_cfg.rcnn, so its RoI head cannot train: give it one")
        if config.rois_per_image is None:
            _require_plain_sampler(training["sampler"])
        else:
            training["sampler"] = {
                "type": "RandomSampler",
                "num": config.rois_per_image,
                "pos_fraction": 1.0,
                "neg_pos_ub": 0,
                "add_gt_as_proposals": True,
            }
        return model

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        roi_head: Any = detector.roi_head
        if isinstance(roi_head, PISARoIHead):
            roi_head.__class__ = StandardRoIHead
        take_no_rois(roi_head)
        backbone: Any = detector.backbone
        for module in backbone.modules():
            if isinstance(getattr(module, "test_branch_idx", None), int):
                # TridentNet's loss counts on all three branches; a frozen backbone in eval mode would give one.
                module.test_branch_idx = -1
        switch_off_labelled_branches(detector)
        embed_roi_head(roi_head.bbox_head, embed_dims, EmbeddingTap())
