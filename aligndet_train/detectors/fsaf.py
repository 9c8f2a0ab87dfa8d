"""FSAF: a box is learned on the one level where its loss is lowest; here, where its box loss is."""

from typing import Any

import torch
from mmdet.models import FSAFHead
from torch import Tensor, nn

from aligndet_train.detectors.adapter import EmbeddingTap
from aligndet_train.detectors.dense import DenseHeadAdapter


class FSAFAdapter(DenseHeadAdapter):
    """FSAF: the level of a box is chosen by box loss alone. Cells of the levels not chosen are left out, and so are
    cells near a box that another box shadows, whatever its id."""

    family = "FSAF"
    head_types = ("FSAFHead",)
    kernel_size = 1
    embedding_layers = ("bbox_head.retina_cls.",)
    predictors = ("bbox_head.retina_reg.",)

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        super().convert(detector, embed_dims)
        head: Any = detector.bbox_head
        head.__class__ = _EmbeddingFSAFHead
        head.embedding_tap, head.loss_cls = head.loss_cls, _NoClassLoss()
        head.assigner = _ShadowsWithoutClass(head.assigner)

    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """See FamilyAdapter."""
        head: Any = detector.bbox_head
        return [head.embedding_tap]


class _NoClassLoss(nn.Module):
    """Zero for every row: the stock head compares levels row by row."""

    use_sigmoid = True

    def forward(self, pred: Tensor, *_: Any, **__: Any) -> Tensor:
        """[N, D] -> zeros [N, 1]."""
        return pred.new_zeros((len(pred), 1))


class _ShadowsWithoutClass:
    """FSAF's assigner names shadowed cells with the class they must not learn; here they learn nothing."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def assign(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock assigner's, ``shadowed_labels`` being the unassigned of the shadowed cells [K]."""
        result = self.stock.assign(*args, **kwargs)
        shadowed = result.get_extra_property("shadowed_labels")
        if shadowed is not None and shadowed.ndim == 2:
            cells = shadowed[:, 0]
            # Its setter refuses what is there already.
            result._extra_properties["shadowed_labels"] = cells[result.gt_inds[cells] <= 0]
        return result


class _EmbeddingFSAFHead(FSAFHead):
    """Levels are chosen after the class loss is computed: the tap is told only then."""

    embedding_tap: EmbeddingTap

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the stock head's."""
        self.cells: list[tuple[Tensor, Tensor, Tensor]] = []
        losses: dict[str, Any] = super().loss_by_feat(*args, **kwargs)
        self.cells = []
        return losses

    def loss_by_feat_single(
        self, cls_score: Tensor, bbox_pred: Tensor, anchors: Tensor, labels: Tensor, label_weights: Tensor,
        *args: Any, **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As the stock head's, of one level; keeps (embeddings, ids, weights) of its cells."""
        embeddings = cls_score.permute(0, 2, 3, 1).reshape(-1, self.cls_out_channels)
        self.cells.append((embeddings, labels.reshape(-1), label_weights[..., 0].reshape(-1)))
        losses: tuple[Tensor, Tensor] = super().loss_by_feat_single(
            cls_score, bbox_pred, anchors, labels, label_weights, *args, **kwargs
        )
        return losses

    def reweight_loss_single(
        self, cls_loss: Tensor, reg_loss: Tensor, assigned_gt_inds: Tensor, labels: Tensor, level: int,
        min_levels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """As the stock head's, and tells the tap what the level learns."""
        result: tuple[Tensor, Tensor, Tensor] = super().reweight_loss_single(
            cls_loss, reg_loss, assigned_gt_inds, torch.zeros_like(labels), level, min_levels
        )
        embeddings, ids, weights = self.cells[level]
        elsewhere = (assigned_gt_inds >= 0) & ~result[2]
        self.embedding_tap(embeddings, ids, weights * ~elsewhere)
        return result

    def calculate_pos_recall(self, cls_scores: list[Tensor], *_: Any) -> Tensor:
        """No score, no recall: zero."""
        return cls_scores[0].new_zeros(())
