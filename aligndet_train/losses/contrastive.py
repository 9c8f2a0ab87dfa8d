"""The box-domain contrastive loss (AlignDet, ICCV 2023, section 3.2), as one masked matrix.

For every query box q of the online view with proposal id i:

    Z+ = boxes of the momentum view with id i; the online view's own when the momentum view has none
    Z- = boxes of both views with another id (gradient stopped)
    loss(q, z+) = -log( e^{q.z+/t} / (e^{q.z+/t} + sum_{z-} e^{q.z-/t}) ) = softplus(neg_q - q.z+/t)

where neg_q, the logsumexp over Z-, depends on q alone: so no loop over ids is needed. The result is the mean
over ids of the mean over (q, z+) pairs, as in the released code (the article prints a plain sum).
"""

from torch import Tensor, cat, finfo, float32, float64, where, zeros_like
from torch import amp as torch_amp
from torch.nn.functional import normalize, softplus

# torch's softplus returns x itself above 20, which is wrong by e^-20: visible in float64 at small temperatures.
_SOFTPLUS_EXACT_BELOW = 60.0


def box_contrastive_loss(
    query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor, *, background: int, temperature: float
) -> Tensor:
    """Scalar InfoNCE over boxes; float64 in float64 out, everything else computed and returned in float32.

    query: [Q, D] embeddings of the online view, not normalised; receives gradient.
    key: [K, D] embeddings of the momentum view; receives none.
    query_ids, key_ids: [Q], [K] integers: the proposal each box was assigned, any values.
    background: the id of boxes assigned no proposal. They are negatives for everyone and queries for no one.
    temperature: tau of the paper (0.5).

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
        negatives = to_negatives.logsumexp(dim=1)

        positive = _positives(same, n_keys=len(k)) & is_query[:, None]
        # Only fallback positives carry a gradient of their own, so this product keeps q attached.
        to_positives = q @ cat([k, q]).T / temperature
        gaps = negatives[:, None] - to_positives
        pair_losses = where(positive, softplus(gaps, threshold=_SOFTPLUS_EXACT_BELOW), zeros_like(gaps))
        return (pair_losses.sum(dim=1) * _row_weights(query_ids, is_query, positive, pair_losses)).sum()


def _positives(same: Tensor, n_keys: int) -> Tensor:
    """[Q, K+Q] bool: boxes of the key view with the query's id, or of the query view when it has none."""
    positive = same.clone()
    found = same[:, :n_keys].any(dim=1, keepdim=True)
    positive[:, n_keys:] &= ~found
    return positive


def _row_weights(query_ids: Tensor, is_query: Tensor, positive: Tensor, like: Tensor) -> Tensor:
    """[Q]: what each query's summed pairs weigh, so that pairs average within an id and ids average evenly."""
    same_query = (query_ids[:, None] == query_ids[None, :]) & is_query[None, :]
    queries_of_id = same_query.sum(dim=1).clamp(min=1).to(like.dtype)
    pairs_of_query = positive.sum(dim=1).clamp(min=1).to(like.dtype)
    n_ids = (is_query.to(like.dtype) / queries_of_id).sum().clamp(min=1)
    return is_query.to(like.dtype) / (n_ids * queries_of_id * pairs_of_query)
