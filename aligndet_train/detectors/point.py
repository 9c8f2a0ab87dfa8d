"""Point-based dense heads: assigned by centre, scale or predicted points."""

from typing import Any, ClassVar

import torch
from mmdet.models import CenterNetUpdateHead, FoveaHead
from mmengine.structures import InstanceData
from torch import Tensor, nn

from aligndet_train.detectors.adapter import BACKGROUND, EmbeddingTap
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


class _AttachedFoveaHead(AttachedBoxLoss, FoveaHead):
    pass


class FoveaBoxAdapter(DenseHeadAdapter):
    """FoveaBox: points assigned by the shrunk box on the level of its scale."""

    family = "FoveaBox"
    head_types = ("FoveaHead",)
    embedding_layers = ("bbox_head.conv_cls.",)
    predictors = ("bbox_head.conv_reg.",)
    head_class = _AttachedFoveaHead


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


class CenterNetUpdateAdapter(DenseHeadAdapter):
    """CenterNet2's one-stage CenterNet, a FCOS with other points: the id of a point is that of the proposal that its
    regression target came from. No heat map of classes is learned, nor are points added to it by box loss."""

    family = "CenterNet"
    head_types = ("CenterNetUpdateHead",)
    embedding_layers = ("bbox_head.conv_cls.",)
    predictors = ("bbox_head.conv_reg.", "bbox_head.scales.")

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        head: Any = detector.bbox_head
        head.__class__ = _EmbeddingCenterNetHead
        # One heat map for all proposals: it may weigh box losses (soft_weight_on_reg).
        head.num_classes = head.cls_out_channels = 1


class _EmbeddingCenterNetHead(CenterNetUpdateHead):
    """Its class loss compares heat maps, of probabilities: embeddings and ids go past them, to the tap."""

    loss_cls: EmbeddingTap

    def loss_by_feat(self, cls_scores: list[Tensor], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the stock head's; cls_scores are the embeddings [B, D, H, W] of every level."""
        rows = [level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in cls_scores]
        self.loss_cls.hold(torch.cat(rows))
        no_scores = [level.new_zeros((len(level), 1, *level.shape[-2:])) for level in cls_scores]
        losses: dict[str, Any] = super().loss_by_feat(no_scores, *args, **kwargs)
        return losses

    def get_targets(
        self, points: list[Tensor], batch_gt_instances: list[InstanceData]
    ) -> tuple[Tensor, Tensor]:
        """As the stock head's, heat [N, 1] and distances [N, 4]; the tap gets the ids [N], level by level."""
        self.ids_of_images: list[Tensor] = []
        targets: tuple[Tensor, Tensor] = super().get_targets(points, batch_gt_instances)
        by_image = [torch.split(ids, [len(level) for level in points]) for ids in self.ids_of_images]
        self.loss_cls.expect(torch.cat([torch.cat(level) for level in zip(*by_image, strict=True)]))
        self.ids_of_images = []
        return targets

    def _get_targets_single(
        self, gt_instances: InstanceData, points: Tensor, regress_ranges: Tensor, strides: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Heat [P, 1] and distances [P, 4], in strides, of points [P, 2] in one image; keeps the points' ids."""
        ids, boxes = gt_instances.labels, gt_instances.bboxes
        one_class = InstanceData(bboxes=boxes, labels=torch.zeros_like(ids))
        heat, distances = super()._get_targets_single(one_class, points, regress_ranges, strides)
        if len(ids):
            # Stock says how far the sides of a point's box are, not which box it is.
            targets = self.bbox_coder.decode(points, distances * strides[:, None])
            nearest = torch.cdist(targets, boxes, p=1).argmin(dim=1)
            ids = torch.where(distances.amax(dim=1) >= 0, ids[nearest], BACKGROUND)
        else:
            ids = ids.new_full((len(points),), BACKGROUND)
        self.ids_of_images.append(ids)
        return heat, distances

    def add_cls_pos_inds(self, *_: Any) -> tuple[None, None]:
        """None: they are for the heat maps of classes."""
        return None, None
