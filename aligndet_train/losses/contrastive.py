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

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, cat, finfo, float32, float64
from torch import amp as torch_amp
from torch import compile as torch_compile
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize, softplus

# torch's softplus returns x itself above 20, which is wrong by e^-20: visible in float64 at small temperatures.
_SOFTPLUS_EXACT_BELOW = 60.0
# That of torch's normalize.
_SHORTEST = 1e-12


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
    groups: tuple[Tensor, Tensor] | None = None,
    compiled: bool = False,
) -> Tensor:
    """Scalar InfoNCE over boxes; float64 in float64 out, everything else computed and returned in float32.

    query: [Q, D] embeddings of the online view, not normalised; receives gradient.
    key: [K, D] embeddings of the momentum view; receives none.
    query_ids, key_ids: [Q], [K] integers: the proposal each box was assigned, any values.
    background: the id of boxes assigned no proposal. They are negatives for everyone and queries for no one.
    temperature: tau of the paper (0.5). others: boxes of the other ranks, see the module. groups: [Q], [K] integers,
    boxes of different ones are no negatives of each other, and no id is in two; None: all are of one.
    compiled: the same by torch.compile, equal up to rounding. Takes some seconds for the first numbers of boxes,
    again when they first change, and hardly ever after; less than two boxes of a kind are not compiled.

    Zero (with a zero gradient) when there is no query. No host synchronisation.
    """
    rows = [query, key] if others is None else [query, key, others.embeddings]
    # Sizes 0 and 1 are forms of their own to torch.compile, which ends a run that has more than eight.
    compute = _compiled() if compiled and min(map(len, rows)) > 1 else _loss_and_gradient
    with torch_amp.autocast(query.device.type, enabled=False):
        loss: Tensor = _WithItsGradient.apply(
            query, key.detach(), query_ids, key_ids, background, temperature, others, groups, compute
        )
        return loss


class _WithItsGradient(Function):
    """A loss whose gradient is made on the way forward, where the logits are still in memory."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, *rest: Any) -> Tensor:
        """``rest``: the other inputs of ``_loss_and_gradient``, then what computes it."""
        *inputs, compute = rest
        loss: Tensor
        # Detached, or a tensor that asks for gradient would be another form to torch.compile.
        loss, gradient = compute(query.detach(), *inputs, with_gradient=ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        ctx.dtype = query.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (scale * gradient).to(ctx.dtype), *[None] * 8


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor | None]]:
    function: Callable[..., tuple[Tensor, Tensor | None]] = torch_compile(_loss_and_gradient, fullgraph=True)
    return function


def _loss_and_gradient(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    background: int,
    temperature: float,
    others: OtherRanks | None,
    groups: tuple[Tensor, Tensor] | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The scalar loss, and its [Q, D] gradient of ``query``: tensor arithmetic and nothing else, for torch.compile."""
    raw = query.to(float64 if query.dtype == float64 else float32)
    norm = raw.norm(dim=1, keepdim=True)
    length = norm.clamp(min=_SHORTEST)
    q = raw / length
    pairs = _pairs(q, key, query_ids, key_ids, background, others, groups)
    loss, gradient = _weighted_pairs(q, *pairs, temperature, with_gradient)
    if gradient is None:
        return loss, None
    along = (gradient * (q / length)).sum(dim=1, keepdim=True).masked_fill(norm < _SHORTEST, 0)
    return loss, gradient / length - q * along


def _pairs(
    q: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    background: int,
    others: OtherRanks | None,
    groups: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k, excluded, positive and weights of ``_weighted_pairs``; the boxes of ``others`` are the first of k."""
    k = normalize(key.to(q.dtype), dim=1)
    is_query = query_ids != background
    same = query_ids[:, None] == cat([key_ids, query_ids])[None, :]
    positive = _positives(same, n_keys=len(k)) & is_query[:, None]
    queries_of_id = _queries_of_id(query_ids, is_query)
    n_ids = (is_query.to(q.dtype) / queries_of_id.to(q.dtype)).sum().clamp(min=1)
    if groups is not None:
        same = same | (groups[0][:, None] != cat([groups[1], groups[0]])[None, :])
    if others is not None:
        foreign = normalize(others.embeddings.to(q.dtype), dim=1)
        k, n_ids = cat([foreign, k]), others.mean_ids.to(q.dtype)
        same = cat([(~others.real).expand(len(q), -1), same], dim=1)
        positive = cat([positive.new_zeros((len(q), len(foreign))), positive], dim=1)
    return k, same, positive, _row_weights(is_query, queries_of_id, positive, q) / n_ids


def _weighted_pairs(
    q: Tensor,
    k: Tensor,
    excluded: Tensor,
    positive: Tensor,
    weights: Tensor,
    temperature: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """sum_i w_i sum_{j in P_i} softplus(n_i - s_ij), with n_i = logsumexp of s_ij over j not excluded, s = q z^T / t.

    z are ``k`` [K, D], then ``q`` [Q, D] itself; excluded and positive: [Q, K+Q] bool; weights: [Q]. Written out with
    its gradient, because autograd would keep eight [Q, K+Q] matrices and multiply three times more of them:

        g_ij = w_i sigmoid(n_i - s_ij) on P_i;   dL/ds_ij = -g_ij + (sum_P g_i) exp(s_ij - n_i) outside ``excluded``
        dL/dq = (dL/ds z - g_qq^T q) / t, the last term because a positive of the same view has a gradient of its own
    """
    z = cat([k, q])
    logits = (q / temperature) @ z.T
    share = logits.masked_fill(excluded, finfo(q.dtype).min)
    negatives = share.logsumexp(dim=1, keepdim=True)
    gaps = negatives - logits
    pulls = softplus(gaps, threshold=_SOFTPLUS_EXACT_BELOW).masked_fill_(~positive, 0)
    loss = (pulls.sum(dim=1) * weights).sum()
    if not with_gradient:
        return loss, None
    pull = gaps.sigmoid_().masked_fill_(~positive, 0).mul_(weights[:, None])
    push = share.sub_(negatives).exp_().mul_(pull.sum(dim=1, keepdim=True)).sub_(pull)
    return loss, (push @ z - pull[:, len(k) :].T @ q) / temperature


def ids_with_a_query(query_ids: Tensor, background: int) -> Tensor:
    """Scalar float64: how many ids, ``background`` apart, are among ``query_ids`` [Q]. No host synchronisation."""
    is_query = query_ids != background
    return (is_query.to(float64) / _queries_of_id(query_ids, is_query)).sum()


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
