"""Subsets of a labelled set: nested, repeatable, with exactly their own boxes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from aligndet_train.finetuning.split import choose, split
from proposals.cli import build_app
from proposals.errors import AlignDetError
from proposals.ground_truth import read_ground_truth


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


def voc_folder(folder, names=("cat", "dog", "cat", "bird")):
    """An image 00, 01, ... of each name, with one box of it; the second box is difficult."""
    (folder / "Annotations").mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / "Annotations" / f"{number:02}.xml").write_text(
            f"<annotation><filename>{number:02}.jpg</filename><size><width>90</width><height>60</height></size>"
            f"<object><name>{name}</name><difficult>{int(number == 1)}</difficult><bndbox><xmin>11</xmin>"
            f"<ymin>21</ymin><xmax>{40 + number}</xmax><ymax>50</ymax></bndbox></object></annotation>"
        )
    return folder


@pytest.mark.parametrize("percent", [50, 100])
def test_subsets_of_a_voc_folder_have_its_images_boxes_and_classes(percent, tmp_path):
    (subset,) = split(voc_folder(tmp_path / "VOC.2012"), tmp_path / "out", [percent], [0])
    assert subset.path.name == f"VOC.2012.{percent}@0.json"
    whole, part = read_ground_truth(tmp_path / "VOC.2012"), read_ground_truth(subset.path)
    assert part.classes == whole.classes == ("bird", "cat", "dog")
    rows = [whole.names.index(name) for name in part.names]
    assert len(set(rows)) == subset.images == subset.boxes == 4 * percent // 100
    assert part.boxes.tolist() == whole.boxes[rows].tolist()
    assert part.ignore.tolist() == whole.ignore[rows].tolist()
    assert [part.classes[i] for i in part.labels] == [whole.classes[i] for i in whole.labels[rows]]


def test_subsets_of_a_voc_list_are_of_its_images(tmp_path):
    lists = voc_folder(tmp_path) / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("03\n01\n")
    (subset,) = split(lists / "train.txt", tmp_path / "out", [100], [4])
    assert subset.path.name == "train.100@4.json"
    assert read_ground_truth(subset.path).names == ["01.jpg", "03.jpg"]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["--percent", "25,50"], ["25", "50"]),
        (["--percent", "50", "--percent", "25, 75"], ["50", "25", "75"]),
        (["--percent", "12.5"], ["12.5"]),
        ([], ["1", "5", "10"]),
    ],
)
def test_shares_come_in_one_word_or_in_several(options, sizes, tmp_path):
    words = ["split", str(voc_folder(tmp_path / "VOC")), str(tmp_path / "out"), "--seeds", "1", *options]
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"VOC.{size}@0.json" for size in sizes}


@pytest.mark.parametrize("text", ["five", "1,,5", "1;5", ""])
def test_a_share_that_is_no_number_is_named(text, tmp_path):
    words = ["split", str(voc_folder(tmp_path / "VOC")), str(tmp_path / "out"), "--percent", text]
    result = CliRunner().invoke(build_app(), words)
    assert isinstance(result.exception, AlignDetError)
    assert "such as 5 or 1,5,10" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_what_is_no_coco_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(AlignDetError, match=r"a\.json is not a COCO annotation file"):
        split(tmp_path / "a.json", tmp_path, [1], [0])
    with pytest.raises(AlignDetError, match="0 %"):
        split(tmp_path / "a.json", tmp_path, [0], [0])
