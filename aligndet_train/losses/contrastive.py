"""The box-domain contrastive loss (AlignDet, ICCV 2023, section 3.2), as one masked matrix.

For every query box q of the online view with proposal id i:

    Z+ = boxes of the momentum view with id i; the online view's own when the momentum view has none
    Z- = boxes of both views with another id (gradient stopped)
    loss(q, z+) = -log( e^{q.z+/t} / (e^{q.z+/t} + sum_{z-} e^{q.z-/t}) ) = softplus(neg_q - q.z+/t)

where neg_q, the logsumexp over Z-, depends on q alone: so no loop over ids is needed. The result is the mean
over ids of the mean over (q, z+) pairs, as in the released code (the article prints a plain sum).

Over several ranks the release contrasts the boxes of each rank among themselves. With ``others`` the boxes of all
ranks are negatives, and the mean over ranks of the losses is the loss of the whole batch. Negatives carry no
gradient and an id never spans two ranks, so the gradient of that mean is exact as well.
"""

from dataclasses import dataclass

from torch import Tensor, cat, finfo, float32, float64, where, zeros_like
from torch import amp as torch_amp
from torch.nn.functional import normalize, softplus

# torch's softplus returns x itself above 20, which is wrong by e^-20: visible in float64 at small temperatures.
_SOFTPLUS_EXACT_BELOW = 60.0


@dataclass(frozen=True)
class OtherRanks:
    """embeddings: [F, D] boxes of the other ranks, both views, not normalised; real: [F] bool, False for padding.

    mean_ids: scalar, the ids with a query, averaged over all ranks.
    """

    embeddings: Tensor
    real: Tensor
    mean_ids: Tensor


def box_contrastive_loss(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    *,
    background: int,
    temperature: float,
    others: OtherRanks | None = None,
) -> Tensor:
    """Scalar InfoNCE over boxes; float64 in float64 out, everything else computed and returned in float32.

    query: [Q, D] embeddings of the online view, not normalised; receives gradient.
    key: [K, D] embeddings of the momentum view; receives none.
    query_ids, key_ids: [Q], [K] integers: the proposal each box was assigned, any values.
    background: the id of boxes assigned no proposal. They are negatives for everyone and queries for no one.
    temperature: tau of the paper (0.5). others: boxes of the other ranks, see the module.

    Zero (with a zero gradient) when there is no query. No host synchronisation.
    """
    dtype = float64 if query.dtype == float64 else float32
    with torch_amp.autocast(query.device.type, enabled=False):
        q = normalize(query.to(dtype), dim=1)
        k = normalize(key.detach().to(dtype), dim=1)
        is_query = query_ids != background
        all_ids = cat([key_ids, query_ids])
        same = query_ids[:, None] == all_ids[None, :]

        stopped = cat([k, q.detach()]) / temperature
        to_negatives = (q @ stopped.T).masked_fill(same, finfo(dtype).min)
        if others is not None:
            to_negatives = cat([to_negatives, _to_others(q, others, temperature)], dim=1)
        negatives = to_negatives.logsumexp(dim=1)

        positive = _positives(same, n_keys=len(k)) & is_query[:, None]
        # Only fallback positives carry a gradient of their own, so this product keeps q attached.
        to_positives = q @ cat([k, q]).T / temperature
        gaps = negatives[:, None] - to_positives
        pair_losses = where(positive, softplus(gaps, threshold=_SOFTPLUS_EXACT_BELOW), zeros_like(gaps))
        queries_of_id = _queries_of_id(query_ids, is_query)
        summed = (pair_losses.sum(dim=1) * _row_weights(is_query, queries_of_id, positive, pair_losses)).sum()
        n_ids = (is_query.to(dtype) / queries_of_id.to(dtype)).sum().clamp(min=1)
        return summed / (n_ids if others is None else others.mean_ids.to(dtype))


def ids_with_a_query(query_ids: Tensor, background: int) -> Tensor:
    """Scalar float64: how many ids, ``background`` apart, are among ``query_ids`` [Q]. No host synchronisation."""
    is_query = query_ids != background
    return (is_query.to(float64) / _queries_of_id(query_ids, is_query)).sum()


def _to_others(q: Tensor, others: OtherRanks, temperature: float) -> Tensor:
    """[Q, F] logits of negatives on other ranks."""
    stopped = normalize(others.embeddings.to(q.dtype), dim=1) / temperature
    return (q @ stopped.T).masked_fill(~others.real, finfo(q.dtype).min)


def _positives(same: Tensor, n_keys: int) -> Tensor:
    """[Q, K+Q] bool: boxes of the key view with the query's id, or of the query view when it has none."""
    positive = same.clone()
    found = same[:, :n_keys].any(dim=1, keepdim=True)
    positive[:, n_keys:] &= ~found
    return positive


def _queries_of_id(query_ids: Tensor, is_query: Tensor) -> Tensor:
    """[Q]: the number of queries with each query's id, at least 1."""
    return ((query_ids[:, None] == query_ids[None, :]) & is_query[None, :]).sum(dim=1).clamp(min=1)


def _row_weights(is_query: Tensor, queries_of_id: Tensor, positive: Tensor, like: Tensor) -> Tensor:
    """[Q]: what each query's summed pairs weigh, so that pairs average within an id."""
    pairs_of_query = positive.sum(dim=1).clamp(min=1).to(like.dtype)
    return is_query.to(like.dtype) / (queries_of_id.to(like.dtype) * pairs_of_query)
