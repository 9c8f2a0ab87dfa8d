"""The order of boxes: what agreement rewards, and that it depends on nothing but the boxes."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proposals.boxes import pairwise_iou
from proposals.ranking import RankName, order
from proposals.selective_search.agreement import agreement_score

WIDTH, HEIGHT = 100, 80


def boxes_of(seed, count):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, [WIDTH - 10, HEIGHT - 10], (count, 2))
    size = random.uniform(1, 40, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def expected_score(boxes):
    """The docstring's formula, all pairs at once."""
    excess = np.maximum(pairwise_iou(boxes, boxes) - 0.4, 0.0)
    np.fill_diagonal(excess, 0.6)
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    centre = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2 / [WIDTH, HEIGHT] - 0.5
    return (excess**2).sum(1) * (sides[:, 0] * sides[:, 1]) ** 0.125 / (1 + 3 * (centre**2).sum(1))


@given(seed=st.integers(0, 10**6), count=st.integers(0, 60))
def test_the_formula(seed, count):
    boxes = boxes_of(seed, count)
    np.testing.assert_allclose(agreement_score(boxes, WIDTH, HEIGHT), expected_score(boxes), rtol=1e-5)


@given(seed=st.integers(0, 10**6), count=st.integers(0, 60))
def test_agreement_permutes(seed, count):
    boxes = boxes_of(seed, count)
    ordered, rank = order(boxes, np.arange(count, dtype=np.float32), "agreement", WIDTH, HEIGHT)
    assert sorted(ordered.tolist()) == sorted(boxes.tolist())
    np.testing.assert_array_equal(rank, np.arange(count))
    again, _ = order(boxes, np.arange(count, dtype=np.float32), "agreement", WIDTH, HEIGHT)
    np.testing.assert_array_equal(ordered, again)


def test_the_box_others_agree_on_comes_first():
    lonely = [[60, 50, 90, 78]]
    crowd = [[20, 20, 60, 60], [21, 20, 60, 60], [20, 21, 61, 60], [22, 20, 60, 62]]
    boxes = np.array(lonely + crowd, np.float32)
    ordered, _ = order(boxes, np.arange(5, dtype=np.float32), "agreement", WIDTH, HEIGHT)
    np.testing.assert_array_equal(ordered[-1], boxes[0])


def test_equal_scores_keep_opencvs_order():
    boxes = np.array([[10, 20, 30, 40], [70, 20, 90, 40], [10, 40, 30, 60], [70, 40, 90, 60]], np.float32)
    ordered, _ = order(boxes, np.arange(4, dtype=np.float32), "agreement", WIDTH, HEIGHT)
    np.testing.assert_array_equal(ordered, boxes)


def test_degenerate_boxes_score_nothing():
    boxes = np.array([[5, 5, 5, 30], [0, 0, 50, 40]], np.float32)
    score = agreement_score(boxes, WIDTH, HEIGHT)
    assert score[0] == 0
    assert score[1] > 0


def test_opencvs_order_is_left_alone():
    boxes, rank = boxes_of(0, 20), np.arange(20, dtype=np.float32)
    ordered, same = order(boxes, rank, "opencv", WIDTH, HEIGHT)
    assert ordered is boxes
    assert same is rank


@pytest.mark.parametrize("name", get_args(RankName))
def test_no_boxes(name):
    ordered, rank = order(np.empty((0, 4), np.float32), np.empty(0, np.float32), name, WIDTH, HEIGHT)
    assert ordered.shape == (0, 4)
    assert rank.shape == (0,)
