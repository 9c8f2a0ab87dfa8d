"""Labels as people really have them, against what mmdet and pycocotools read out of the files we hand to them."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.structures import InstanceData

from aligndet_train.finetuning.coco_ap import CocoAp
from aligndet_train.finetuning.image_sizes import other_sizes
from aligndet_train.finetuning.labels import Labels, matched, read_labels, require_boxes, shared_images
from proposals.errors import AlignDetError
from proposals.ground_truth import read_ground_truth
from proposals.images import upright_size

BOXES = {"a": [10.0, 20.0, 60.0, 50.0], "b": [80.0, 10.0, 40.0, 90.0]}


def coco(
    order: list[tuple[int, str]], first_id: int = 1, image: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The astronaut with one box of class a and one of class b."""
    ids = {name: number for number, name in order}
    return {
        "images": [{"id": 5, "file_name": "astronaut.jpg", "width": 160, "height": 160, **(image or {})}],
        "annotations": [
            {"id": first_id + place, "image_id": 5, "category_id": ids[name], "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0}
            for place, (name, box) in enumerate(BOXES.items())
        ],
        "categories": [{"id": number, "name": name} for number, name in order],
    }  # fmt: skip


def written(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def learned(labels: Labels) -> dict[str, list[float]]:
    """{class name: its box, xywh} as mmdet's dataset reads them."""
    dataset = DATASETS.build(
        {"type": "mmdet.CocoDataset", "ann_file": str(labels.annotations), "pipeline": [],
         "data_prefix": {"img": f"{labels.images}/"}, "metainfo": {"classes": labels.classes}}
    )  # fmt: skip
    (image,) = [dataset.get_data_info(i) for i in range(len(dataset))]
    found = {}
    for instance in image["instances"]:
        x1, y1, x2, y2 = instance["bbox"]
        found[labels.classes[instance["bbox_label"]]] = [x1, y1, x2 - x1, y2 - y1]
    return found


def measured(labels: Labels) -> float:
    """AP of a detector that finds every box, by the metric that fine-tuning uses."""
    metric = CocoAp(ann_file=str(labels.annotations), metric="bbox")
    metric.dataset_meta = {"classes": labels.classes}
    corners = [[x, y, x + w, y + h] for x, y, w, h in BOXES.values()]
    found = InstanceData(
        bboxes=torch.tensor(corners),
        scores=torch.tensor([0.9, 0.8]),
        labels=torch.tensor([labels.classes.index(name) for name in BOXES]),
    )
    sample = {
        "img_id": json.loads(labels.annotations.read_text())["images"][0]["id"],
        "ori_shape": (160, 160),
    }
    metric.process({}, [{**sample, "pred_instances": found}])
    return float(metric.evaluate(1)["coco/bbox_mAP"])


@pytest.mark.parametrize("order", [[(3, "a"), (7, "b")], [(7, "b"), (3, "a")], [(7, "a"), (3, "b")]])
@pytest.mark.parametrize("first_id", [0, 1])
def test_every_class_learns_its_own_boxes_whatever_the_numbers(order, first_id, photos, tmp_path):
    labels = read_labels(written(tmp_path / "t.json", coco(order, first_id)), photos, tmp_path / "scratch")
    assert learned(labels) == BOXES
    assert measured(labels) == pytest.approx(1)


def test_what_mmdet_cannot_read_is_completed(photos, tmp_path):
    content = coco([(0, "a"), (1, "b")])
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"], annotation["id"]
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    assert labels.source == tmp_path / "t.json"
    assert learned(labels) == BOXES
    assert measured(labels) == pytest.approx(1)


@pytest.mark.parametrize(
    "ids", [["0", "1"], ["00000003-uuid", "00000004-uuid"], [[1], {}], [-1, -2], [True, 2]]
)
def test_boxes_that_are_not_numbered_from_1_are_numbered_anew(ids, photos, tmp_path):
    content = coco([(3, "a"), (7, "b")])
    for annotation, number in zip(content["annotations"], ids, strict=True):
        annotation["id"] = number
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    assert learned(labels) == BOXES
    assert measured(labels) == pytest.approx(1)


def test_boxes_that_are_lost_are_counted_by_what_is_wrong_with_them(photos, tmp_path):
    content = coco([(3, "a"), (7, "b")])
    sound = content["annotations"][0]
    changes = [{"bbox": [50, 50, -9, 20]}, {"bbox": [500, 20, 50, 40]}, {"image_id": None}, {"iscrowd": 1}]
    content["annotations"] += [{**sound, "id": 10 + i, **change} for i, change in enumerate(changes)]
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    faults = require_boxes(labels, "learn from", None).faults
    assert faults is not None
    assert faults.startswith("3 of 6 boxes: 1 are narrower or lower than 1 px")
    assert faults.endswith("1 lie outside of their image, 1 are of images that are not listed")
    sound_ones = written(tmp_path / "u.json", coco([(3, "a"), (7, "b")]))
    assert require_boxes(read_labels(sound_ones, photos, tmp_path), "learn from", None).faults is None


def test_a_fit_file_is_used_as_it_is(photos, tmp_path):
    path = written(tmp_path / "t.json", coco([(3, "a"), (7, "b")]))
    assert read_labels(path, photos, tmp_path / "scratch").annotations == path
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("area", [0, -1, None, "5", float("nan")])
def test_an_area_that_mmdet_cannot_use_is_that_of_the_box(area, photos, tmp_path):
    content = coco([(3, "a"), (7, "b")])
    for annotation in content["annotations"]:
        annotation["area"] = area
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    assert learned(labels) == BOXES
    assert measured(labels) == pytest.approx(1)
    areas = [annotation["area"] for annotation in json.loads(labels.annotations.read_text())["annotations"]]
    assert areas == [5.0 if area == "5" else w * h for _, _, w, h in BOXES.values()]


def test_numbers_as_names_and_text_as_sizes_are_put_right(photos, tmp_path):
    content = coco([(3, "a"), (7, "b")], image={"width": "160", "height": "160"})
    for category, name in zip(content["categories"], (1, 2), strict=True):
        category["name"] = name
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    assert labels.classes == ("1", "2")
    assert list(learned(labels).values()) == list(BOXES.values())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_of_another_encoding_is_read(encoding, photos, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(coco([(3, "a"), (7, "b")])), encoding=encoding)
    labels = read_labels(tmp_path / "t.json", photos, tmp_path / "scratch")
    assert learned(labels) == BOXES
    assert measured(labels) == pytest.approx(1)


def test_boxes_of_a_category_that_is_not_listed_are_named(photos, tmp_path):
    content = coco([(3, "a"), (7, "b")])
    del content["categories"][1]
    with pytest.raises(AlignDetError, match=r"1 of 2 annotations .* categories .* \(ids 7\)"):
        read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_ids_that_two_entries_share_are_refused(kind, photos, tmp_path):
    """As in two files joined into one: the boxes of both would go to the second entry."""
    content = coco([(3, "a"), (7, "b")])
    content[kind].append({**content[kind][0], "file_name": "coffee.jpg", "name": "c"})
    with pytest.raises(AlignDetError, match=rf"1 ids are of several {kind}, \d first: number them anew"):
        read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")


def test_numbers_that_are_text_on_one_side_alone_are_named(photos, tmp_path):
    content = coco([(3, "a"), (7, "b")], image={"id": "5"})
    with pytest.raises(AlignDetError, match=r"no annotation is of an image that is listed: .* 5, '5'"):
        read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")


def test_boxes_of_no_listed_category_are_not_taken_for_none(photos, tmp_path):
    content = coco([(3, "a"), (7, "b")])
    content["categories"] = [{"id": 1, "name": "a"}]
    with pytest.raises(
        AlignDetError, match="no annotation is of a category that is listed: the first is of 3"
    ):
        read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")


@pytest.mark.parametrize("first_id", [0, 1])
def test_what_is_marked_ignore_is_neither_learned_nor_measured(first_id, photos, tmp_path):
    content = coco([(3, "a"), (7, "b")], first_id)
    content["annotations"][1]["ignore"] = 1
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    truth = json.loads(labels.annotations.read_text())
    assert [bool(box.get("ignore")) for box in truth["annotations"]] == [False, True]
    assert [box["iscrowd"] for box in truth["annotations"]] == [0, 0]
    assert [box["id"] for box in truth["annotations"]] == [1, 2]


def test_images_of_another_size_than_their_labels_say_are_told(photos, tmp_path):
    content = coco([(3, "a"), (7, "b")])
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    width, height = upright_size(photos / "astronaut.jpg")
    assert f"astronaut.jpg is {width} x {height} px upright, the labels say 160 x 160" in other_sizes(labels)
    content = coco([(3, "a"), (7, "b")], image={"width": width, "height": height})
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    assert other_sizes(labels) is None


def test_an_empty_image_file_is_named(photos, tmp_path):
    (tmp_path / "astronaut.jpg").touch()
    path = written(tmp_path / "t.json", coco([(1, "a"), (2, "b")]))
    with pytest.raises(AlignDetError, match=r"1 of 1 images .* empty files, astronaut\.jpg first"):
        read_labels(path, tmp_path, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [0.1, 0.2, 0.5, 0.4]}, "2 are narrower or lower than 1 px .*normalised to 0..1"),
        ({"bbox": [500.0, 20.0, 50.0, 40.0]}, "2 lie outside of their image"),
        ({"iscrowd": 1}, "2 are crowds or difficult ones"),
        ({"ignore": 1}, "2 are crowds or difficult ones"),
    ],
)
def test_a_set_of_which_mmdet_keeps_no_box_is_refused_with_the_reason(change, reason, photos, tmp_path):
    content = coco([(1, "a"), (2, "b")])
    for annotation in content["annotations"]:
        annotation.update(change)
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    if not change.keys() & {"iscrowd", "ignore"}:
        assert learned(labels) == {}
    with pytest.raises(AlignDetError, match=f"no box to learn from: of 2 boxes {reason}"):
        require_boxes(labels, "learn from", None)
    content["annotations"][0] = coco([(1, "a"), (2, "b")])["annotations"][0]
    require_boxes(read_labels(written(tmp_path / "u.json", content), photos, tmp_path), "learn from", None)


FILTERS = [
    None,
    {"filter_empty_gt": True},
    {"min_size": 32},
    {"filter_empty_gt": True, "min_size": 32},
    {"filter_empty_gt": False, "min_size": 161},
]


@pytest.mark.parametrize("filter_cfg", FILTERS)
def test_images_are_counted_as_mmdet_keeps_them(filter_cfg, photos, tmp_path):
    whole = coco([(1, "a"), (2, "b")])
    content = {**whole, "images": [], "annotations": []}
    sides = [(160, 160), (31, 160), (160, 32), (200, 200)]
    changes: list[dict[str, Any] | None] = [None, {}, {"iscrowd": 1}, {"bbox": [0.1, 0.1, 0.5, 0.5]}]
    for number, ((width, height), change) in enumerate(product(sides, changes)):
        content["images"].append(
            {"id": number, "file_name": "astronaut.jpg", "width": width, "height": height}
        )
        if change is not None:
            box = {"id": number + 1, "image_id": number, "bbox": [1, 1, 20, 20], "area": 400}
            content["annotations"].append({**whole["annotations"][0], **box, **change})
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    kept = require_boxes(labels, "learn from", filter_cfg)
    dataset = DATASETS.build(
        {"type": "mmdet.CocoDataset", "ann_file": str(labels.annotations), "pipeline": [], "filter_cfg": filter_cfg,
         "data_prefix": {"img": f"{labels.images}/"}, "metainfo": {"classes": labels.classes}}
    )  # fmt: skip
    assert kept.number == len(dataset)
    assert (kept.left_out is None) == (len(dataset) == 16)
    if kept.left_out is not None:
        assert kept.left_out.startswith(f"training leaves out {16 - len(dataset)} of 16 images: ")


def test_images_of_one_name_in_one_folder_are_shared(photos, tmp_path):
    def read(name: str, image: str, folder: Path) -> Labels:
        content = coco([(1, "a"), (2, "b")], image={"file_name": image})
        return read_labels(written(tmp_path / name, content), folder, tmp_path)

    astronaut = read("train.json", "astronaut.jpg", photos)
    assert shared_images(astronaut, read("same.json", "astronaut.jpg", photos)) == ["astronaut.jpg"]
    above = f"{photos.name}/astronaut.jpg"
    assert shared_images(astronaut, read("above.json", above, photos.parent)) == [above]
    assert shared_images(astronaut, read("cat.json", "cat.jpg", photos)) == []
    shutil.copytree(photos, tmp_path / "others")
    assert shared_images(astronaut, read("others.json", "astronaut.jpg", tmp_path / "others")) == []


def test_a_missing_image_size_is_named(photos, tmp_path):
    path = written(tmp_path / "t.json", coco([(1, "a"), (2, "b")], image={"width": 0}))
    with pytest.raises(AlignDetError, match=r"how large astronaut\.jpg is"):
        read_labels(path, photos, tmp_path / "scratch")


def voc(folder: Path, *names: str) -> Path:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox></object>"
        for name in names
        for x, y, w, h in [map(int, BOXES[name])]
    )
    (folder / "Annotations").mkdir(parents=True)
    (folder / "Annotations" / "astronaut.xml").write_text(
        f"<annotation><filename>astronaut.jpg</filename><size><width>160</width><height>160</height></size>{objects}"
        "</annotation>"
    )
    return folder / "Annotations"


@pytest.mark.parametrize(
    ("said", "image"),
    [
        ("cat.jpg", "astronaut.jpg"),
        (r"C:\photos\astronaut.PNG", "astronaut.PNG"),
        ("astronaut", "astronaut.jpg"),
        ("", "astronaut.jpg"),
        ("v1.2 photo", "astronaut.jpg"),
    ],
)
def test_the_image_of_an_xml_has_the_xmls_name(said, image, tmp_path):
    folder = voc(tmp_path, "a")
    xml = folder / "astronaut.xml"
    xml.write_text(xml.read_text().replace("<filename>astronaut.jpg<", f"<filename>{said}<"))
    assert read_ground_truth(folder).names == [image]


def test_a_voc_class_is_its_name_without_blanks_and_never_nothing(tmp_path):
    folder = voc(tmp_path, "a", "b")
    xml = folder / "astronaut.xml"
    text = xml.read_text()
    xml.write_text(text.replace("<name>b<", "<name> a\n<"))
    assert read_ground_truth(folder).classes == ("a",)
    xml.write_text(text.replace("<name>b<", "<name> <"))
    with pytest.raises(AlignDetError, match=r"astronaut\.xml has an object without a <name>"):
        read_ground_truth(folder)


def test_two_folders_of_one_name_stay_two_sets(photos, tmp_path):
    train = read_labels(voc(tmp_path / "train", "a"), photos, tmp_path / "scratch")
    val = read_labels(voc(tmp_path / "val", "a", "b"), photos, tmp_path / "scratch")
    assert set(learned(train)) == {"a"}
    assert set(learned(val)) == {"a", "b"}


def test_a_held_out_set_takes_the_classes_of_the_training_set(photos, tmp_path):
    train = read_labels(voc(tmp_path / "train", "a", "b"), photos, tmp_path / "scratch")
    val = read_labels(voc(tmp_path / "val", "b"), photos, tmp_path / "scratch")
    ours = matched(val, train.classes, tmp_path / "scratch")
    assert ours.classes == ("a", "b")
    assert learned(ours) == {"b": BOXES["b"]}
    renumbered = written(tmp_path / "val.json", coco([(7, "a"), (3, "b")]))
    other = matched(read_labels(renumbered, photos, tmp_path), train.classes, tmp_path / "scratch")
    assert learned(other) == BOXES


def test_a_class_that_was_never_learned_is_refused(photos, tmp_path):
    train = read_labels(voc(tmp_path / "train", "a"), photos, tmp_path / "scratch")
    val = read_labels(voc(tmp_path / "val", "a", "b"), photos, tmp_path / "scratch")
    with pytest.raises(AlignDetError, match="has boxes of b, which"):
        matched(val, train.classes, tmp_path / "scratch")


@pytest.mark.parametrize("change", [{"iscrowd": None}, {"bbox": ["10", "20", 60.0, 50.0]}])
def test_what_pycocotools_cannot_count_with_is_put_right(change, photos, tmp_path):
    content = coco([(1, "a"), (2, "b")])
    content["annotations"][0].update(change)
    labels = read_labels(written(tmp_path / "train.json", content), photos, tmp_path / "own")
    assert learned(labels) == learned_as_written(photos, tmp_path)
    (one, other) = json.loads(labels.annotations.read_text())["annotations"]
    assert (one["iscrowd"], other["iscrowd"], one["bbox"]) == (0, 0, BOXES["a"])


def learned_as_written(photos: Path, tmp_path: Path) -> dict[str, list[float]]:
    return learned(
        read_labels(written(tmp_path / "sound.json", coco([(1, "a"), (2, "b")])), photos, tmp_path)
    )
