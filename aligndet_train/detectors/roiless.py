"""RoI heads of mmdet that fail, or leave a loss out, when no image of a batch has a RoI.

Sampled positives only, that is every batch without proposals; and ranks average losses that must have the same names.
"""

from typing import Any

import torch
from mmdet.models import DoubleConvFCBBoxHead, GridRoIHead, SABLHead
from torch import Tensor, nn


def take_no_rois(head: Any) -> None:
    """Let ``head``, a RoI head or its converted box head, take none, in place: a head of another kind already does."""
    for kind in (_RoIlessDoubleHead, _RoIlessSABLHead, _RoIlessGridHead):
        if type(head) is kind.__base__:
            head.__class__ = kind


def _nothing(module: nn.Module) -> Tensor:
    """Zero, attached to every parameter: DDP waits for those outside the graph."""
    return torch.stack([parameter.reshape(-1)[:0].sum() for parameter in module.parameters()]).sum()


def _no_rows(module: nn.Module, width: int) -> Tensor:
    nothing = _nothing(module)
    return nothing + nothing.new_zeros((0, width))


class _RoIlessDoubleHead(DoubleConvFCBBoxHead):
    def forward(self, x_cls: Tensor, x_reg: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] each -> embeddings [N, D] and box deltas [N, 4]; stock cannot flatten N = 0."""
        if len(x_cls) == 0:
            return _no_rows(self, self.fc_cls[-1].out_features), _no_rows(self, 4)
        outputs: tuple[Tensor, Tensor] = super().forward(x_cls, x_reg)
        return outputs


class _RoIlessSABLHead(SABLHead):
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[N, C, H, W] -> embeddings [N, D], and buckets and offsets [N, 4 * side_num]; stock cannot flatten N = 0."""
        if len(x) == 0:
            buckets, offsets = (_no_rows(self, 4 * self.side_num) for _ in range(2))
            return _no_rows(self, self.fc_cls[-1].out_features), (buckets, offsets)
        outputs: tuple[Tensor, tuple[Tensor, Tensor]] = super().forward(x)
        return outputs


class _RoIlessGridHead(GridRoIHead):
    def bbox_loss(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the stock head's; without RoIs ``loss_grid``, which it then leaves out, is zero."""
        results: dict[str, Any] = super().bbox_loss(*args, **kwargs)
        if "loss_grid" not in results["loss_bbox"]:
            results["loss_bbox"]["loss_grid"] = _nothing(self.grid_head)
        return results
