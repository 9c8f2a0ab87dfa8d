"""SimSiam's loss: the negative cosine of one view's prediction and the other's projection (Chen & He 2021, eq. 1-4).

Written here and not taken from lightly (maintained, 1.6.0 at the time): it would bring pytorch_lightning and hydra
into every training image for these few lines.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def simsiam_loss(
    predictions: tuple[Tensor, Tensor], projections: tuple[Tensor, Tensor], *, stop_gradient: bool = True
) -> Tensor:
    """D(p1, z2) / 2 + D(p2, z1) / 2, a scalar in [-1, 1]; -1 is perfect agreement, and also collapse.

    predictions, projections: of the two views, [B, D] each, any float dtype; float16 and bfloat16 are computed in
    float32. stop_gradient: hold z fixed in D, equation 3; without it the output collapses.
    """
    (p1, p2), (z1, z2) = predictions, projections
    return (_distance(p1, z2, stop_gradient) + _distance(p2, z1, stop_gradient)) / 2


def _distance(prediction: Tensor, projection: Tensor, stop_gradient: bool) -> Tensor:
    target = projection.detach() if stop_gradient else projection
    with torch.autocast(prediction.device.type, enabled=False):
        p, z = (normalize(_wide(rows), dim=1) for rows in (prediction, target))
        return -(p * z).sum(dim=1).mean()


def _wide(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
