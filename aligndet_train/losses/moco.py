"""MoCo's loss: InfoNCE of a query against its key and a queue of others (He et al. 2020, eq. 1)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def moco_loss(
    queries: Tensor, keys: Tensor, queue: Tensor, filled: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The loss, a scalar, and the share of queries whose own key is nearer than every row of the queue.

    queries: [B, D], any float dtype, scaled to unit length here, in float32 at least; keys: [B, D] and queue: [K, D],
    unit rows that no gradient passes. filled: [K] bool, which rows of the queue count; without any the loss is 0. No
    query is compared with another picture's key of the same step.
    """
    with torch.autocast(queries.device.type, enabled=False):
        unit = normalize(queries.to(torch.promote_types(queries.dtype, torch.float32)), dim=1)
        own = (unit * keys.detach()).sum(dim=1, keepdim=True)
        others = (unit @ queue.detach().T).masked_fill(~filled, -torch.inf)
        logits = torch.cat([own, others], dim=1) / temperature
        loss = cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
    return loss, (logits.detach().argmax(dim=1) == 0).float().mean()
