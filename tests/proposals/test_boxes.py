"""Box geometry against literal definitions, on random boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from proposals.boxes import areas, as_boxes, clip, pairwise_iou, scale, whole_image
from proposals.nms import nms

_COORDINATE = st.integers(-50, 350)


@st.composite
def boxes(draw, max_size=25):
    corners = draw(hnp.arrays(np.int64, (draw(st.integers(0, max_size)), 2, 2), elements=_COORDINATE))
    low, high = corners.min(axis=1), corners.max(axis=1)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def _iou(a, b):
    a, b = [float(v) for v in a], [float(v) for v in b]
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


@given(boxes(), boxes())
def test_iou_is_the_definition(first, second):
    expected = [[_iou(a, b) for b in second] for a in first]
    assert pairwise_iou(first, second).shape == (len(first), len(second))
    assert np.array_equal(pairwise_iou(first, second), np.array(expected).reshape(len(first), len(second)))


@given(boxes(), st.floats(0.05, 1.0))
@settings(deadline=None)
def test_nms_is_the_greedy_loop(candidates, threshold):
    kept = []
    for i, box in enumerate(candidates):
        if all(_iou(candidates[j], box) <= threshold for j in kept):
            kept.append(i)
    assert nms(candidates, threshold).tolist() == kept


@given(boxes())
@settings(deadline=None)
def test_nms_of_survivors_changes_nothing(candidates):
    survivors = candidates[nms(candidates, 0.5)]
    assert len(nms(survivors, 0.5)) == len(survivors)


@given(boxes(), st.integers(1, 300), st.integers(1, 300))
def test_clipped_boxes_lie_in_the_image_and_lose_no_inner_pixel(candidates, width, height):
    clipped = clip(candidates, width, height)
    assert (clipped >= 0).all()
    assert (clipped[:, [0, 2]] <= width).all()
    assert (clipped[:, [1, 3]] <= height).all()
    whole = as_boxes([[0, 0, width, height]])
    for before, after in zip(candidates, clipped, strict=True):
        shared = areas(as_boxes(before)) + areas(whole)
        iou = pairwise_iou(as_boxes(before), whole)[0, 0]
        inner = iou * shared / (1 + iou)
        assert np.allclose(areas(as_boxes(after)), inner, rtol=1e-9, atol=1e-6)


@given(boxes(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_scaling_there_and_back(candidates, x, y):
    assert np.allclose(scale(scale(candidates, x, y), 1 / x, 1 / y), candidates, rtol=1e-5, atol=1e-3)
    assert scale(candidates, x, y).dtype == np.float32


def test_no_boxes_are_welcome_everywhere():
    none = as_boxes([])
    assert areas(none).shape == (0,)
    assert nms(none, 0.5).shape == (0,)
    assert pairwise_iou(none, as_boxes([[0, 0, 1, 1]])).shape == (0, 1)


@pytest.mark.parametrize("side", [2**24, 2**24 + 1, 2**24 + 3, 2**31 - 1])
def test_no_box_leaves_an_image_whose_side_float32_rounds(side):
    boxes = np.concatenate([whole_image(side, 2), clip(as_boxes([[5, 0, 2.0**40, 2]]), side, 2)])
    assert boxes.dtype == np.float32
    assert (boxes[:, 2].astype(np.float64) <= side).all()
    assert (boxes[:, 2].astype(np.float64) > side * (1 - 1e-6)).all()
