"""What tells a learning embedding from a stuck one: the raw InfoNCE value does not.

InfoNCE at temperature t with K orthogonal negatives cannot fall below ln(1 + K e^{-1/t}), so a loss near 3 may
be a success. These figures have a fixed meaning instead.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Pairwise distances grow with the square of the rows; this many give a stable mean.
_UNIFORMITY_ROWS = 512


@torch.no_grad()
def embedding_diagnostics(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    *,
    background: int,
    groups: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Scalars on the embeddings' device, without host synchronisation.

    query [Q, D], key [K, D], query_ids [Q], key_ids [K], groups: as in losses.contrastive.

    retrieval: of the queries whose proposal is in the other view, the share whose nearest box there (of their group)
    is it.
    retrieval_chance: what a random choice would reach: the mean share of the other view's boxes that are right.
    alignment: mean squared distance of positive pairs (Wang & Isola 2020; 0 is best).
    uniformity: log of the mean of exp(-2 d^2) over pairs of the online view (lower is more spread).
    with_key: share of the queries whose proposal is in the other view; to the others their own view is the partner.
    positives: number of queries.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k = normalize(query.float(), dim=1), normalize(key.float(), dim=1)
        is_query = query_ids != background
        positives = is_query.sum().float()
        if len(q) == 0 or len(k) == 0:
            nothing = positives.new_zeros(())
            names = ("retrieval", "retrieval_chance", "alignment", "uniformity", "with_key")
            return dict.fromkeys(names, nothing) | {"positives": positives}
        similarity, choices = q @ k.T, torch.full((len(q),), len(k), device=q.device)
        nearest = similarity
        if groups is not None:
            apart = groups[0][:, None] != groups[1][None, :]
            nearest, choices = similarity.masked_fill(apart, -2), (~apart).sum(dim=1)
        matches = (query_ids[:, None] == key_ids[None, :]) & is_query[:, None]
        findable = matches.any(dim=1)
        found = matches.gather(1, nearest.argmax(dim=1, keepdim=True))[:, 0]
        return {
            "retrieval": found.sum() / findable.sum().clamp(min=1),
            "retrieval_chance": (matches.sum(dim=1) / choices.clamp(min=1)).sum()
            / findable.sum().clamp(min=1),
            "alignment": ((2 - 2 * similarity) * matches).sum() / matches.sum().clamp(min=1),
            "uniformity": _uniformity(q[:: -(-len(q) // _UNIFORMITY_ROWS)]),
            "with_key": findable.sum() / positives.clamp(min=1),
            "positives": positives,
        }


@torch.no_grad()
def contrastive_floor(
    query_ids: Tensor,
    key_ids: Tensor,
    *,
    background: int,
    temperature: float,
    more_negatives: Tensor | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What box_contrastive_loss is when positives agree fully and negatives are orthogonal: a float32 scalar.

    The mean over ids of ln(1 + K e^{-1/t}), K being the boxes of both views (in the own one of ``groups``) with another
    id (and ``more_negatives``, a scalar, of other ranks). Zero when there is no query. No host synchronisation.
    """
    is_query = query_ids != background
    all_ids = torch.cat([key_ids, query_ids])
    different = query_ids[:, None] != all_ids[None, :]
    if groups is not None:
        different &= groups[0][:, None] == torch.cat([groups[1], groups[0]])[None, :]
    negatives = different.sum(dim=1).float()
    if more_negatives is not None:
        negatives = negatives + more_negatives
    floors = torch.log1p(negatives * math.exp(-1 / temperature))
    queries_of_id = (query_ids[:, None] == query_ids[None, :]).sum(dim=1)
    weights = is_query.float() / queries_of_id.clamp(min=1)
    return (floors * weights).sum() / weights.sum().clamp(min=1)


def _uniformity(rows: Tensor) -> Tensor:
    squared = (2 - 2 * rows @ rows.T).clamp(min=0)
    pairs = max(1, len(rows) * (len(rows) - 1))
    return (((-2 * squared).exp().sum() - len(rows)) / pairs).clamp(min=1e-12).log()
