"""Subsets of a labelled set: nested, repeatable, with exactly their own boxes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligndet_train.finetuning.split import choose, split
from proposals.errors import AlignDetError


@given(
    n=st.integers(1, 300),
    seed=st.integers(0, 9),
    percents=st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)),
)
def test_smaller_subsets_lie_in_larger_ones(n, seed, percents):
    small, large = (choose(range(n), percent, seed) for percent in sorted(percents))
    assert set(small) <= set(large) <= set(range(n))
    assert len(set(small)) == len(small) == max(1, int(n * min(percents) / 100 + 0.5))
    assert choose(list(reversed(range(n))), max(percents), seed) == large


def test_a_subset_has_its_images_boxes_and_says_what_it_lost(tmp_path):
    whole = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(40)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i % 4, "bbox": [0, 0, 1, 1]} for i in range(40)
        ],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(5)],
    }
    source = tmp_path / "train.json"
    source.write_text(json.dumps(whole))
    found = split(source, tmp_path / "out", [5, 100], [0, 1])
    assert [subset.path.name for subset in found] == [
        "train.5@0.json", "train.5@1.json", "train.100@0.json", "train.100@1.json",
    ]  # fmt: skip
    for subset in found:
        part = json.loads(subset.path.read_text())
        assert {a["image_id"] for a in part["annotations"]} == {image["id"] for image in part["images"]}
        assert part["categories"] == whole["categories"]
        present = {a["category_id"] for a in part["annotations"]}
        assert set(subset.missing) == {f"c{i}" for i in range(4) if i not in present}
    assert json.loads(found[2].path.read_text()) == whole
    assert [subset.images for subset in found] == [2, 2, 40, 40]


def test_what_is_no_coco_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(AlignDetError, match=r"a\.json is not a COCO annotation file"):
        split(tmp_path / "a.json", tmp_path, [1], [0])
    with pytest.raises(AlignDetError, match="0 %"):
        split(tmp_path / "a.json", tmp_path, [0], [0])
