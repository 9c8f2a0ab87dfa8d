"""`benchmarks/transfer.py pictures`, on folders in the archives' form."""

import argparse
import json
from pathlib import Path

import pytest
import transfer_pictures

VOC = """<annotation><filename>{name}</filename><size><width>500</width><height>375</height></size>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>110</xmax><ymax>220</ymax></bndbox></object></annotation>"""


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Four VOC pictures, of which two are listed, and three of COCO, of which two are."""
    (tmp_path / "lists").mkdir()
    for name, files in {"pool": "1.jpg 3.jpg", "train": "b.jpg", "val": "d.jpg"}.items():
        (tmp_path / "lists" / f"{name}.txt").write_text("\n".join(files.split()) + "\n")
    monkeypatch.setattr(transfer_pictures, "LISTS", tmp_path / "lists")
    (tmp_path / "VOC2012" / "Annotations").mkdir(parents=True)
    for name in "abcd":
        (tmp_path / "VOC2012" / "Annotations" / f"{name}.xml").write_text(VOC.format(name=f"{name}.jpg"))
    (tmp_path / "val2017").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "val2017" / f"{number}.jpg").write_bytes(b"picture %d" % number)
    return argparse.Namespace(coco=tmp_path / "val2017", voc=tmp_path / "VOC2012", out=tmp_path / "IN")


def test_listed_pictures_are_taken_and_difficult_boxes_count(archives):
    for _ in range(2):
        transfer_pictures.pictures(archives)
    assert {path.name: path.read_bytes() for path in (archives.out / "pool").iterdir()} == {
        "1.jpg": b"picture 1",
        "3.jpg": b"picture 3",
    }
    for name, file in (("train", "b.jpg"), ("val", "d.jpg")):
        content = json.loads((archives.out / f"{name}.json").read_text())
        (image,), (box,), (category,) = (content[part] for part in ("images", "annotations", "categories"))
        assert (image["file_name"], image["width"], image["height"]) == (file, 500, 375)
        assert box["bbox"] == [10, 20, 100, 200]
        assert (box["image_id"], box["category_id"]) == (image["id"], category["id"])
        assert (box["iscrowd"], box.get("ignore"), category["name"]) == (0, None, "dog")
    both = json.loads((archives.out / "labels.json").read_text())
    assert [image["file_name"] for image in both["images"]] == ["b.jpg", "d.jpg"]


def test_a_picture_that_is_missing_is_named(archives):
    (archives.voc / "Annotations" / "d.xml").unlink()
    with pytest.raises(SystemExit, match=r"no annotation of d\.jpg"):
        transfer_pictures.pictures(archives)
    (archives.coco / "3.jpg").unlink()
    with pytest.raises(SystemExit, match=r"3\.jpg is missing"):
        transfer_pictures.pictures(archives)


def test_the_committed_lists_are_of_the_study():
    counts = {name: len(set(transfer_pictures.listed(name))) for name in ("pool", "train", "val")}
    assert counts == {"pool": 1400, "train": 422, "val": 391}
    assert not set(transfer_pictures.listed("train")) & set(transfer_pictures.listed("val"))
