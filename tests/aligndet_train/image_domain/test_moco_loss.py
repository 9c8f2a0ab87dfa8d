"""The loss against the paper's formula written with loops, and its gradients against finite differences."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from aligndet_train.losses.moco import moco_loss

ROWS, WIDTH, QUEUE = 4, 6, 9
ALL = torch.ones(QUEUE, dtype=torch.bool)


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, WIDTH, dtype=torch.float64, generator=generator) for n in (ROWS, ROWS, QUEUE)]
    return rows[0], normalize(rows[1], dim=1), normalize(rows[2], dim=1)


def literal(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        length = math.sqrt(sum(x * x for x in query))
        own, *others = (
            math.exp(sum(x * y for x, y in zip(query, row, strict=True)) / length / temperature)
            for row in (key, *queue)
        )
        total -= math.log(own / (own + sum(others)))
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_loss_and_gradients_are_the_formulas(temperature):
    queries, keys, queue = drawn(round(100 * temperature))
    queries.requires_grad_()
    loss, _ = moco_loss(queries, keys, queue, ALL, temperature)
    arrays = [t.detach().numpy() for t in (queries, keys, queue)]
    assert loss.item() == pytest.approx(literal(*arrays, temperature), abs=1e-12)
    loss.backward()
    for place in np.ndindex(ROWS, WIDTH):
        above, below = (arrays[0].copy() for _ in range(2))
        above[place] += 1e-6
        below[place] -= 1e-6
        slope = (literal(above, *arrays[1:], temperature) - literal(below, *arrays[1:], temperature)) / 2e-6
        assert queries.grad[place].item() == pytest.approx(slope, abs=1e-7)


def test_no_gradient_passes_keys_and_queue():
    queries, keys, queue = (t.requires_grad_() for t in drawn(0))
    moco_loss(queries, keys, queue, ALL, 0.2)[0].backward()
    assert keys.grad is None
    assert queue.grad is None
    assert queries.grad.abs().min() > 0


def test_found_counts_queries_nearer_to_their_key_than_to_the_queue():
    axes = torch.eye(4)
    queries = axes[[0, 1, 2]] + 0.1
    _, found = moco_loss(queries, axes[[0, 1, 3]], axes[[2, 3]], ALL[:2], 0.2)
    assert found.item() == pytest.approx(2 / 3)


def test_half_precision_is_computed_in_float32():
    queries, keys, queue = drawn(1)
    loss, _ = moco_loss(queries.bfloat16(), keys.float(), queue.float(), ALL, 0.2)
    assert loss.dtype == torch.float32
    rounded = queries.bfloat16().double().numpy()
    assert loss.item() == pytest.approx(literal(rounded, keys.numpy(), queue.numpy(), 0.2), abs=1e-5)


def test_rows_that_are_not_filled_do_not_count():
    queries, keys, queue = drawn(2)
    queries.requires_grad_()
    filled = torch.arange(QUEUE) < 5
    loss, _ = moco_loss(queries, keys, queue, filled, 0.2)
    assert loss.item() == pytest.approx(
        moco_loss(queries, keys, queue[:5], filled[:5], 0.2)[0].item(), abs=1e-12
    )
    loss, found = moco_loss(queries, keys, queue, torch.zeros_like(filled), 0.2)
    loss.backward()
    assert (loss.item(), found.item()) == (0, 1)
    assert queries.grad.abs().max() == 0
