"""The momentum teacher f_k: the student's neck and heads, averaged; the frozen backbone is shared.

theta_k <- m theta_k + (1 - m) theta_q after each step (AlignDet section 3.2, after MoCo). The backbone never
changes, so a copy of it would only cost memory.
"""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from aligndet_train.schedules import Schedule

# A share of random weights that is worth a word, and the steps below which a run only tries things out.
_MUCH_OF_A_WEIGHT = 0.05
_FEWEST_STEPS = 100


def make_teacher(student: nn.Module) -> nn.Module:
    """A gradient-free copy of ``student`` that calls the student's own ``backbone`` module.

    The shared backbone is not registered as a submodule of the teacher: it is in no state dict twice, and
    ``teacher.train()`` does not reach it. Raises AttributeError when the student has no ``backbone``.
    """
    backbone = student._modules.pop("backbone")
    try:
        teacher = copy.deepcopy(student)
    finally:
        # The order of registration is the order of the state dict: the backbone goes back to the front.
        rest = dict(student._modules)
        student._modules.clear()
        student._modules["backbone"] = backbone
        student._modules.update(rest)
    teacher.__dict__["backbone"] = backbone
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move ``teacher``'s parameters towards ``student``'s by 1 - momentum; copy its buffers.

    Parameters that are learned embeddings of queries (DETR) are copied, not averaged, as in AlignDet's release.
    """
    source = dict(student.named_parameters())
    averaged: list[tuple[Tensor, Tensor]] = []
    copied: list[tuple[Tensor, Tensor]] = []
    for name, parameter in teacher.named_parameters():
        (copied if "query_embedding" in name else averaged).append((parameter, source[name]))
    if averaged:
        targets, sources = zip(*averaged, strict=True)
        torch._foreach_lerp_(list(targets), [s.detach() for s in sources], 1.0 - momentum)
    for target, value in (*copied, *_buffers(teacher, student)):
        target.copy_(value)


def random_share(momentum: Schedule) -> float:
    """What an averaged weight of the teacher still consists of its start after a run with this ``momentum`` [steps].

    Learned query embeddings and buffers are copied: they are never the start.
    """
    return float(np.prod(momentum))


def faster_start(steps: int) -> float:
    """A ``momentum_start`` with which so few steps, along the half cosine to 1, forget the teacher's start."""
    # The start's share is exp(-steps (1 - m) / 2): here four in a million.
    return max(0.0, math.floor(1000 * (1 - 25 / steps)) / 1000)


def teacher_line(momentum: Schedule) -> str:
    """What a run with this ``momentum`` [steps] should know of its teacher, and what to try where that is too slow."""
    start, end, left = float(momentum[0]), float(momentum[-1]), random_share(momentum)
    said, faster = f"teacher's momentum {start:g} to {end:g}", faster_start(len(momentum))
    if left < _MUCH_OF_A_WEIGHT or len(momentum) < _FEWEST_STEPS:
        return said
    return (
        f"{said}: after so few steps {left:.0%} of each averaged weight is still the random one it starts with; "
        f"worth a try, in a new --work-dir: --cfg-options pretrain.momentum_start={faster:g} (the embeddings learn "
        "more, AP need not rise: docs/training.md)"
    )


def _buffers(teacher: nn.Module, student: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    source = dict(student.named_buffers())
    return ((buffer, source[name]) for name, buffer in teacher.named_buffers())
