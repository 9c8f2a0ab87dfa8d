"""Which boxes of the two views enter the contrastive loss, when there are more than it takes.

A query learns from boxes of its proposal in the *other* view. Drawn apart, two small samples have few proposals in
common: the rest could only be told from everything else, their own proposal included. So both views draw the same
proposals, and first those that are in both.
"""

import torch
from torch import Tensor

_PRIME = 2**31 - 1
_RANK, _ALONE, _BACKGROUND = 2**31, 2**60, 2**61
# Positives that are looked at more closely, and background boxes at least.
_CANDIDATES, _SPARE = 2**18, 4096


@torch.no_grad()
def sample_both_views(
    query_ids: Tensor, key_ids: Tensor, limit: int, *, background: int, background_share: float
) -> tuple[Tensor, Tensor]:
    """Rows [<= limit] int64 of each view: all of a view that has no more than ``limit``.

    query_ids, key_ids: [Q], [K] int64, the proposal of each box, ``background`` for none. Of ``limit`` boxes
    ``background_share`` are background and the rest positives, more of one where the other has too few. Positives:
    a box of every proposal that is in both views, in an order that the views share; then their second boxes, and so
    on; at last those of proposals that one view alone has. Which box of a proposal, and which of the background, is
    random. No host synchronisation.
    """
    rows = [_candidates(ids, limit, background) for ids in (query_ids, key_ids)]
    query_ids, key_ids = query_ids[rows[0]], key_ids[rows[1]]
    factor, shift = torch.randint(1, _PRIME, (2,), device=query_ids.device)
    turns = [(ids * factor + shift) % _PRIME for ids in (query_ids, key_ids)]
    query_rows = _rows(query_ids, key_ids, turns[0], limit, background, background_share)
    key_rows = _rows(key_ids, query_ids, turns[1], limit, background, background_share)
    return rows[0][query_rows], rows[1][key_rows]


def _candidates(ids: Tensor, limit: int, background: int) -> Tensor:
    """Rows to choose from, as most of a large batch's million anchors are background, and sorting takes time.

    All positives, or a random part where they are more than a quarter of a million; and enough background.
    """
    count = min(len(ids), _CANDIDATES + max(2 * limit, _SPARE))
    if count == len(ids):
        return torch.arange(len(ids), device=ids.device)
    draw, is_positive = torch.rand(len(ids), device=ids.device), ids != background
    first = is_positive & (draw * is_positive.sum() < _CANDIDATES)
    # Positives of the candidates, background, the other positives.
    order = torch.where(first, 2, (~is_positive).to(torch.long))
    return (draw + order).topk(count).indices


def _rows(ids: Tensor, others: Tensor, turn: Tensor, limit: int, background: int, share: float) -> Tensor:
    if len(ids) <= limit:
        return torch.arange(len(ids), device=ids.device)
    is_background = ids == background
    rank = _rank_within_id(ids)
    order = turn + rank * _RANK + ~_found(ids, others) * _ALONE
    place = _inverse(torch.where(is_background, _BACKGROUND + rank, order).argsort()).double()
    # Each kind numbered by itself, and the numbers stretched so that the first ``limit`` have the wanted shares.
    place = torch.where(is_background, rank.double(), place) + 0.5
    share = min(max(share, 1e-9), 1 - 1e-9)
    return (place / torch.where(is_background, share, 1 - share)).topk(limit, largest=False).indices


def _rank_within_id(ids: Tensor) -> Tensor:
    """[N]: 0, 1, ... over the boxes of each id, in random order."""
    shuffled = torch.randperm(len(ids), device=ids.device)
    order = shuffled[ids[shuffled].argsort(stable=True)]
    grouped = ids[order]
    rank = torch.arange(len(ids), device=ids.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(rank).index_copy_(0, order, rank)


def _found(ids: Tensor, others: Tensor) -> Tensor:
    """[N] bool: whether each id is among ``others``. torch.isin would wait for the device."""
    if len(others) == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    known = others.sort().values
    return known[torch.searchsorted(known, ids).clamp(max=len(known) - 1)] == ids


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
