"""The loss against the paper's formula written with loops, and its gradients against finite differences."""

import math

import numpy as np
import pytest
import torch

from aligndet_train.losses.simsiam import simsiam_loss

SHAPE = (5, 7)


def rows(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*SHAPE, dtype=torch.float64, generator=generator) for _ in range(4)]


def literal(p1: np.ndarray, p2: np.ndarray, z1: np.ndarray, z2: np.ndarray) -> float:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    pairs = range(len(p1))
    first = -sum(cosine(p1[i], z2[i]) for i in pairs) / len(p1)
    second = -sum(cosine(p2[i], z1[i]) for i in pairs) / len(p1)
    return 0.5 * first + 0.5 * second


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_are_the_formulas(seed):
    tensors = [t.requires_grad_() for t in rows(seed)]
    loss = simsiam_loss((tensors[0], tensors[1]), (tensors[2], tensors[3]))
    arrays = [t.detach().numpy() for t in tensors]
    assert loss.item() == pytest.approx(literal(*arrays), abs=1e-14)
    loss.backward()
    for number in (0, 1):
        for place in np.ndindex(*SHAPE):
            moved = [[a.copy() for a in arrays] for _ in range(2)]
            moved[0][number][place] += 1e-6
            moved[1][number][place] -= 1e-6
            slope = (literal(*moved[0]) - literal(*moved[1])) / 2e-6
            assert tensors[number].grad[place].item() == pytest.approx(slope, abs=1e-9)


def test_no_gradient_passes_the_stop_branch():
    p1, p2, z1, z2 = (t.requires_grad_() for t in rows(0))
    simsiam_loss((p1, p2), (z1, z2)).backward()
    assert z1.grad is None
    assert z2.grad is None
    simsiam_loss((p1, p2), (z1, z2), stop_gradient=False).backward()
    assert z1.grad.abs().min() > 0
    assert z2.grad.abs().min() > 0


def test_equal_branches_give_minus_one_at_any_scale_and_precision():
    z, _, _, _ = rows(1)
    assert simsiam_loss((z * 3, z * 9), (z, z * 0.1)).item() == pytest.approx(-1, abs=1e-14)
    half = [t.bfloat16() for t in rows(2)]
    loss = simsiam_loss((half[0], half[1]), (half[2], half[3]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(literal(*(t.double().numpy() for t in half)), abs=1e-6)
