"""Filter names, the literal meaning of a filter, and the fallback chain."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proposals.boxes import as_boxes
from proposals.errors import AlignDetError
from proposals.filter_spec import FilterSpec
from proposals.filters import apply_filter
from proposals.nms import nms
from tests.proposals.filtering_by_hand import kept_by_hand

_DEFAULT = "ratio3size0008@0.5"


def _apply(boxes, width, height, name=_DEFAULT, rank_name="opencv"):
    boxes = as_boxes(boxes)
    rank = np.arange(len(boxes), dtype=np.float32)
    return apply_filter(boxes, rank, width, height, FilterSpec.parse(name), rank_name)


@pytest.mark.parametrize("name", [_DEFAULT, "ratio3size0308@0.5", "ratio2.5size0110@0.7", "none"])
def test_names_round_trip(name):
    assert FilterSpec.parse(name).name == name


@given(st.floats(1, 20), st.integers(0, 98), st.integers(1, 99), st.floats(0.01, 1))
def test_any_filter_round_trips(aspect, low, high, iou):
    spec = FilterSpec(float(f"{aspect:.6g}"), low / 10, (low + high) / 10, float(f"{iou:.6f}"))
    if low + high < 100:
        assert FilterSpec.parse(spec.name) == spec


_PLAIN = st.from_regex(r"[1-9]\d{0,17}(\.\d{0,17}[1-9])?", fullmatch=True)
_SHARES = st.from_regex(r"0?\.\d{0,17}[1-9]", fullmatch=True)


@given(_PLAIN, st.integers(0, 98), st.integers(1, 99), _SHARES)
def test_the_canonical_name_of_any_filter_is_a_name_of_it(aspect, low, high, iou):
    if low < high:
        spec = FilterSpec.parse(f"ratio{aspect}size{low:02d}{high:02d}@{iou}")
        assert FilterSpec.parse(spec.name) == spec
        assert FilterSpec.parse(spec.name).name == spec.name


@given(st.decimals(1, 10**6, places=4), st.decimals("0.0001", 1, places=6))
def test_names_of_usual_filters_stay_as_they_were(aspect, iou):
    spec = FilterSpec.parse(f"ratio{aspect:f}size0008@{iou:f}")
    assert spec.name == f"ratio{spec.max_aspect:.12g}size0008@{spec.nms_iou:.12g}"


def test_other_spellings_have_one_name():
    assert FilterSpec.parse("ratio3.0size0008@.50").name == _DEFAULT


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ratio3",
        "ratio3size08@0.5",
        "ratio0.5size0008@0.5",
        "ratio3size0800@0.5",
        "ratio3size0008@1.5",
        "None",
        f"ratio{'9' * 400}size0008@0.5",
    ],
)
def test_a_wrong_name_teaches_the_grammar(name):
    with pytest.raises(AlignDetError, match=r"ratio<R>size<LL><HH>@<IOU>"):
        FilterSpec.parse(name)


_SIDES = st.tuples(st.integers(0, 199), st.integers(0, 149), st.integers(1, 200), st.integers(1, 150))


@given(st.lists(_SIDES, max_size=40), st.sampled_from([_DEFAULT, "ratio2size0305@0.4"]))
@settings(deadline=None)
def test_the_rule_is_the_literal_one(sides, name):
    width, height = 200, 150
    limit, low, high, iou = (3, 0.0, 0.8, 0.5) if name == _DEFAULT else (2, 0.3, 0.5, 0.4)
    boxes = [(x, y, min(x + w, width), min(y + h, height)) for x, y, w, h in sides]
    allowed = []
    for x1, y1, x2, y2 in boxes:
        w, h = x2 - x1, y2 - y1
        relative = math.sqrt(w * h) / math.sqrt(width * height)
        # Skip the boxes that rounding could put on either side of a limit.
        if min(abs(relative - low), abs(relative - high)) > 1e-9:
            allowed.append(1 / limit <= w / h <= limit and low <= relative <= high)
        else:
            return
    result = _apply(boxes, width, height, name)
    if any(allowed):
        expected = as_boxes([box for box, keep in zip(boxes, allowed, strict=True) if keep])
        assert result.status == "ok"
        assert np.array_equal(result.boxes, expected[nms(expected, iou)])
    else:
        assert result.status != "ok"


@given(st.lists(_SIDES, max_size=20))
@settings(deadline=None)
def test_no_image_is_left_without_a_box(sides):
    result = _apply([(x, y, x + w, y + h) for x, y, w, h in sides], 200, 150)
    assert len(result.boxes) == len(result.rank) >= 1
    assert (result.boxes[:, 2:] > result.boxes[:, :2]).all()
    assert (result.boxes <= [200, 150, 200, 150]).all()
    assert (np.diff(result.rank) >= 0).all()


def test_the_fallbacks_come_in_order():
    large, long, thin = [0, 0, 190, 140], [0, 0, 200, 40], [0, 0, 200, 10]
    assert _apply([large, long, [5, 5, 50, 50]], 200, 150).status == "ok"
    assert _apply([large, long, thin], 200, 150).status == "fallback_no_size"
    assert _apply([long, thin], 200, 150).status == "fallback_min_side"
    whole = _apply([thin], 200, 150)
    assert whole.status == "fallback_whole_image"
    assert whole.boxes.tolist() == [[0, 0, 200, 150]]
    assert _apply([], 200, 150).status == "fallback_whole_image"


@pytest.mark.parametrize(
    ("box", "name", "status"),
    [
        ([0, 0, 80, 80], "ratio3size0008@0.5", "ok"),
        ([0, 0, 81, 80], "ratio3size0008@0.5", "fallback_no_size"),
        ([0, 0, 30, 30], "ratio3size0308@0.5", "ok"),
        ([0, 0, 30, 29], "ratio3size0308@0.5", "fallback_no_size"),
        ([0, 0, 90, 30], "ratio3size0008@0.5", "ok"),
        ([0, 0, 30, 90], "ratio3size0008@0.5", "ok"),
        ([0, 0, 100, 32], "ratio3size0008@0.5", "fallback_min_side"),
        ([0, 0, 32, 100], "ratio3size0008@0.5", "fallback_min_side"),
        ([0, 0, 100, 31], "ratio3size0008@0.5", "fallback_whole_image"),
    ],
)
def test_a_box_at_a_limit_is_allowed(box, name, status):
    assert _apply([box], 100, 100, name).status == status


def test_small_boxes_belong_to_the_main_rule():
    assert _apply([[0, 0, 9, 9]], 200, 150).status == "ok"


def test_none_keeps_every_box_and_its_rank():
    result = _apply([[0, 0, 200, 150], [0, 0, 200, 150], [3, 3, 4, 90]], 200, 150, "none")
    assert len(result.boxes) == 3
    assert result.rank.tolist() == [0, 1, 2]


def test_ranks_follow_their_boxes():
    result = _apply([[0, 0, 150, 10], [10, 10, 60, 60], [10, 10, 60, 61], [90, 90, 140, 140]], 200, 150)
    assert result.rank.tolist() == [1, 3]


@given(st.integers(0, 10**6), st.integers(1, 60))
@settings(deadline=None, max_examples=30)
def test_boxes_are_filtered_then_ordered_then_thinned(seed, count):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, [150, 100], (count, 2))
    boxes = as_boxes(np.concatenate([corner, corner + random.uniform(20, 60, (count, 2))], axis=1))
    result = _apply(boxes, 200, 150, rank_name="agreement")
    kept, rank = kept_by_hand(boxes, 200, 150)
    assert np.array_equal(result.boxes, kept)
    assert np.array_equal(result.rank, rank)


def test_of_boxes_that_overlap_the_one_that_others_agree_on_is_kept():
    # In OpenCV's order the first of them would go on, and take the others with it.
    first, agreed, others = [40, 40, 100, 100], [40, 40, 110, 110], [[44, 40, 110, 110], [40, 44, 110, 110]]
    boxes = [first, agreed, *others]
    assert _apply(boxes, 200, 150).boxes.tolist() == [first]
    result = _apply(boxes, 200, 150, rank_name="agreement")
    assert result.boxes.tolist() == [agreed]
    assert result.rank.tolist() == [0]


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.495, 1), (math.nextafter(0.5, 0), 1), (0.5, 2), (math.nextafter(0.5, 1), 2)]
)
def test_a_pair_that_overlaps_as_much_as_allowed_is_kept(threshold, kept):
    # 50 of 100 square pixels are shared: exactly one half.
    assert len(nms(as_boxes([[0, 0, 10, 10], [0, 0, 10, 5]]), threshold)) == kept
