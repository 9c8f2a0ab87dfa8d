"""SimCLR's loss: InfoNCE of a view against its picture's other and those of all others (Chen et al. 2020, eq. 1)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def simclr_loss(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss, a scalar: the mean over all 2N views; and the share of them whose nearest is their picture's other.

    first, second: [N, D], any float dtype, row i of both is of picture i; scaled to unit length here, in float32 at
    least. Gradients pass through all rows.
    """
    with torch.autocast(first.device.type, enabled=False):
        rows = torch.cat([first, second])
        unit = normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
        others = torch.arange(len(unit), device=unit.device).roll(len(first))
        loss = cross_entropy(similarity, others)
    return loss, (similarity.detach().argmax(dim=1) == others).float().mean()
