"""Labels as people really have them, against what mmdet and pycocotools read out of the files we hand to them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import DATASETS
from mmengine.structures import InstanceData

from aligndet_train.finetuning.labels import Labels, matched, read_labels
from proposals.errors import AlignDetError

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
    metric = CocoMetric(ann_file=str(labels.annotations), metric="bbox")
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
    assert measured(labels) == 1.0


def test_what_mmdet_cannot_read_is_completed(photos, tmp_path):
    content = coco([(0, "a"), (1, "b")])
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"], annotation["id"]
    labels = read_labels(written(tmp_path / "t.json", content), photos, tmp_path / "scratch")
    assert labels.source == tmp_path / "t.json"
    assert learned(labels) == BOXES
    assert measured(labels) == 1.0


def test_a_fit_file_is_used_as_it_is(photos, tmp_path):
    path = written(tmp_path / "t.json", coco([(3, "a"), (7, "b")]))
    assert read_labels(path, photos, tmp_path / "scratch").annotations == path
    assert not (tmp_path / "scratch").exists()


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
