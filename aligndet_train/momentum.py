"""The momentum teacher f_k: the student's neck and heads, averaged; the frozen backbone is shared.

theta_k <- m theta_k + (1 - m) theta_q after each step (AlignDet section 3.2, after MoCo). The backbone never
changes, so a copy of it would only cost memory.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


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

    Parameters that are learned embeddings of queries (DETR) are copied, not averaged: METHOD section 3.
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


def _buffers(teacher: nn.Module, student: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    source = dict(student.named_buffers())
    return ((buffer, source[name]) for name, buffer in teacher.named_buffers())
