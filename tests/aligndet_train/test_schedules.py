"""Schedules are arrays indexed by the step."""

import numpy as np
import pytest

from aligndet_train.schedules import half_cosine, warmup_multistep


def test_learning_rate_warms_up_then_steps_down():
    factors = warmup_multistep(1200, warmup=100, warmup_ratio=1e-3, milestones=(8 / 12, 11 / 12), gamma=0.1)
    assert len(factors) == 1200
    assert factors[0] == pytest.approx(1e-3)
    assert factors[50] == pytest.approx((1e-3 + 1) / 2)
    assert np.all(factors[100:800] == 1)
    assert factors[800:1100] == pytest.approx(0.1)
    assert factors[1100:] == pytest.approx(0.01)


def test_momentum_rises_along_half_a_cosine():
    values = half_cosine(0.996, 1.0, 101)
    assert values[0] == pytest.approx(0.996)
    assert values[50] == pytest.approx(0.998)
    assert values[-1] == pytest.approx(1.0)
    assert np.all(np.diff(values) > 0)


def test_without_a_warm_up_the_first_step_has_the_full_rate():
    factors = warmup_multistep(10, warmup=0, warmup_ratio=1e-3, milestones=(0.8,), gamma=0.1)
    assert factors == pytest.approx([1.0] * 8 + [0.1] * 2)


def test_a_milestone_is_at_the_nearest_step():
    # 8/12 of 100 steps are 66.7.
    factors = warmup_multistep(100, warmup=0, warmup_ratio=1.0, milestones=(8 / 12,), gamma=0.1)
    assert factors == pytest.approx([1.0] * 67 + [0.1] * 33)


@pytest.mark.parametrize("total", [1, 2])
def test_shortest_runs_are_legal(total):
    assert len(half_cosine(0.9, 1.0, total)) == total
    assert np.isfinite(
        warmup_multistep(total, warmup=0, warmup_ratio=0.1, milestones=(0.5,), gamma=0.1)
    ).all()
