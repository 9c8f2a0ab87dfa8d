"""Point-based dense heads: assigned by centre, scale or predicted points."""

from typing import Any, ClassVar

from mmdet.models import FoveaHead
from torch import nn

from aligndet_train.detectors.dense import AttachedBoxLoss, DenseHeadAdapter


class FCOSAdapter(DenseHeadAdapter):
    """FCOS: 3x3 conv - ReLU - 1x1 conv on the class tower; points assigned by centre and regression range."""

    family = "FCOS"
    head_types = ("FCOSHead", "NASFCOSHead")
    defaults: ClassVar[dict[str, Any]] = {
        **DenseHeadAdapter.defaults,
        # Of mmdet's own FCOS recipe.
        "clip_grad": 35.0,
    }
    embedding_layers = ("bbox_head.conv_cls.",)
    predictors = ("bbox_head.conv_reg.", "bbox_head.conv_centerness.", "bbox_head.scales.")


class FoveaBoxAdapter(DenseHeadAdapter):
    """FoveaBox: points assigned by the shrunk box on the level of its scale."""

    family = "FoveaBox"
    head_types = ("FoveaHead",)
    embedding_layers = ("bbox_head.conv_cls.",)
    predictors = ("bbox_head.conv_reg.",)

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        detector.bbox_head.__class__ = _AttachedFoveaHead


class _AttachedFoveaHead(AttachedBoxLoss, FoveaHead):
    pass


class RepPointsAdapter(DenseHeadAdapter):
    """RepPoints: the embedding of a point is read where its first point set says (deformable convolution)."""

    family = "RepPoints"
    head_types = ("RepPointsHead",)
    kernel_size = 1
    defaults: ClassVar[dict[str, Any]] = {**DenseHeadAdapter.defaults, "clip_grad": 35.0}
    embedding_layers = ("bbox_head.reppoints_cls_out.",)
    predictors = ("bbox_head.reppoints_pts_init_out.", "bbox_head.reppoints_pts_refine_out.")


class VFNetAdapter(DenseHeadAdapter):
    """VarifocalNet: ATSS assignment. Its class target, the predicted IoU in the column of the class, has no column
    for an id: the head's other mode, plain labels, takes its place; box losses keep their IoU weights."""

    family = "VFNet"
    head_types = ("VFNetHead",)
    embedding_layers = ("bbox_head.vfnet_cls.",)
    predictors = ("bbox_head.vfnet_reg.", "bbox_head.vfnet_reg_refine.", "bbox_head.scales")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        head: Any = detector.bbox_head
        head.use_vfl = False
