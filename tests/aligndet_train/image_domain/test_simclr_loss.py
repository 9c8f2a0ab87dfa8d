"""The loss against the paper's formula written with loops, and its gradients against finite differences."""

import math

import numpy as np
import pytest
import torch

from aligndet_train.losses.simclr import simclr_loss

ROWS, WIDTH = 4, 6


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(2, ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def literal(views: np.ndarray, temperature: float) -> float:
    rows = [list(row) for view in views for row in view]

    def likeness(one: int, other: int) -> float:
        lengths = math.hypot(*rows[one]) * math.hypot(*rows[other])
        return math.exp(
            sum(x * y for x, y in zip(rows[one], rows[other], strict=True)) / lengths / temperature
        )

    total = 0.0
    for one in range(2 * ROWS):
        all_others = sum(likeness(one, other) for other in range(2 * ROWS) if other != one)
        total -= math.log(likeness(one, (one + ROWS) % (2 * ROWS)) / all_others)
    return total / (2 * ROWS)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_loss_and_gradients_are_the_formulas(temperature):
    views = drawn(round(100 * temperature)).requires_grad_()
    loss, _ = simclr_loss(*views, temperature)
    values = views.detach().numpy()
    assert loss.item() == pytest.approx(literal(values, temperature), abs=1e-12)
    loss.backward()
    for place in np.ndindex(2, ROWS, WIDTH):
        above, below = values.copy(), values.copy()
        above[place] += 1e-6
        below[place] -= 1e-6
        slope = (literal(above, temperature) - literal(below, temperature)) / 2e-6
        assert views.grad[place].item() == pytest.approx(slope, abs=1e-7)


def test_found_counts_views_nearest_to_the_other_of_their_picture():
    # Degrees. Of the first views one has its picture's other nearest, of the second views two have.
    first, second = (
        torch.stack([angles.cos(), angles.sin()], dim=1).double()
        for angles in torch.deg2rad(torch.tensor([[0.0, 90.0, 200.0], [10.0, 95.0, 355.0]]))
    )
    assert simclr_loss(first, second, 0.2)[1].item() == pytest.approx(3 / 6)
    assert simclr_loss(first, first, 0.2)[1].item() == 1


def test_half_precision_is_computed_in_float32():
    first, second = drawn(1).bfloat16()
    loss, _ = simclr_loss(first, second, 0.2)
    assert loss.dtype == torch.float32
    rounded = torch.stack([first, second]).double().numpy()
    assert loss.item() == pytest.approx(literal(rounded, 0.2), abs=1e-5)
