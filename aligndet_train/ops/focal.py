"""Sigmoid and softmax focal loss (Lin et al. 2017, eq. 5) and their gradients, without a host sync.

mmdet calls these on CUDA only. ``weight`` is per class and is looked up by a row's target; a row of the
background (target = C for sigmoid, negative for softmax) has weight 1.
"""

import torch
from torch import Tensor

from aligndet_train.ops._kernels import wide


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write into ``output`` [N, C] the loss of ``logits`` [N, C] for int64 ``target`` [N] in [0, C]."""
    signed, _, share = _towards_target(logits, target, alpha)
    loss = -share * torch.sigmoid(-signed).pow(gamma) * torch.nn.functional.logsigmoid(signed)
    output.copy_(loss * _row_weight(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write into ``grad_input`` [N, C] the derivative of the summed loss by ``logits`` [N, C]."""
    signed, sign, share = _towards_target(logits, target, alpha)
    right, wrong = torch.sigmoid(signed), torch.sigmoid(-signed)
    slope = gamma * right * torch.nn.functional.logsigmoid(signed) - wrong
    grad_input.copy_(sign * share * wrong.pow(gamma) * slope * _row_weight(weight, target)[:, None])


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write into ``output`` [N] the loss of ``softmax`` [N, C] for int64 ``target`` [N] in [-1, C)."""
    right, wrong = _target_probability(softmax, target)
    loss = -alpha * wrong.pow(gamma) * right.log()
    output.copy_(loss * _row_weight(weight, target) * (target >= 0))


def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write into ``grad_input`` [N, C] the derivative by the logits, and into ``buff`` [N] a row's factor."""
    right, wrong = _target_probability(softmax, target)
    slope = gamma * wrong.pow(gamma - 1) * right * right.log() - wrong.pow(gamma)
    factor = alpha * slope * _row_weight(weight, target) * (target >= 0)
    buff.copy_(factor)
    grad_input.copy_(factor[:, None] * (_one_hot(softmax, target).to(factor) - wide(softmax)))


def _towards_target(logits: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits signed so that larger is more right, that sign, and alpha or 1 - alpha: each [N, C]."""
    values = wide(logits)
    positive = _one_hot(logits, target).to(values)
    sign = 2 * positive - 1
    return values * sign, sign, positive * alpha + (1 - positive) * (1 - alpha)


def _one_hot(scores: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(scores.shape[1], device=scores.device)


def _target_probability(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The target's probability and what it lacks to 1, kept off 0 for logarithms and powers."""
    right = wide(softmax).gather(1, target.clamp(min=0)[:, None])[:, 0]
    tiny = torch.finfo(right.dtype).tiny
    return right.clamp(min=tiny), (1 - right).clamp(min=tiny)


def _row_weight(weight: Tensor, target: Tensor) -> Tensor:
    if not weight.numel():
        return torch.ones(1, device=target.device)
    known = (target >= 0) & (target < weight.numel())
    return torch.where(known, wide(weight)[target.clamp(0, weight.numel() - 1)], 1.0)
