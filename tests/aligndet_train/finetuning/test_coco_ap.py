"""The figures against pycocotools, asked for directly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aligndet_train.finetuning.coco_ap import CocoAp

IMAGES, BOXES, CLASSES = 12, 5, 3


def truth_and_found(seed: int) -> tuple[dict, list[dict]]:
    """Random boxes, and a detector's that are near some of them."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": i, "width": 400, "height": 300, "file_name": f"{i}.jpg"} for i in range(IMAGES)],
        "categories": [{"id": c + 1, "name": f"class {c}"} for c in range(CLASSES)],
        "annotations": [],
    }
    found = []
    for image in range(IMAGES):
        boxes = np.concatenate([rng.uniform(0, 200, (BOXES, 2)), rng.uniform(8, 150, (BOXES, 2))], axis=1)
        labels = rng.integers(CLASSES, size=BOXES)
        for box, label in zip(boxes, labels, strict=True):
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": int(label) + 1,
                 "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0}
            )  # fmt: skip
        moved = boxes + rng.normal(0, 6, boxes.shape)
        corners = np.concatenate([moved[:, :2], moved[:, :2] + np.maximum(moved[:, 2:], 1)], axis=1)
        found.append({"img_id": image, "bboxes": corners, "scores": rng.random(BOXES), "labels": labels})
    return truth, found


def measured(
    path: Path, found: list[dict], prefix: str | None = None, most: tuple[int, ...] = (1, 10, 100)
) -> dict[str, float]:
    return metric_and_figures(path, found, prefix, most)[1]


def metric_and_figures(
    path: Path, found: list[dict], prefix: str | None = None, most: tuple[int, ...] = (1, 10, 100)
) -> tuple[CocoAp, dict[str, float]]:
    metric = CocoAp(ann_file=str(path), metric="bbox", proposal_nums=most, outfile_prefix=prefix)
    metric.dataset_meta = {"classes": tuple(f"class {c}" for c in range(CLASSES))}
    for image in found:
        prediction = {name: torch.tensor(image[name]) for name in ("bboxes", "scores", "labels")}
        metric.process(
            {}, [{"img_id": image["img_id"], "ori_shape": (300, 400), "pred_instances": prediction}]
        )
    return metric, metric.evaluate(size=IMAGES)


@pytest.mark.parametrize("most", [(1, 10, 100), (1, 2, 3)])
def test_figures_are_pycocotools_own_and_not_rounded(tmp_path, most):
    truth, found = truth_and_found(0)
    (tmp_path / "t.json").write_text(json.dumps(truth))
    figures = measured(tmp_path / "t.json", found, most=most)
    rows = [
        {"image_id": image["img_id"], "category_id": int(label) + 1, "score": float(score),
         "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for image in found
        for box, score, label in zip(image["bboxes"].tolist(), image["scores"], image["labels"], strict=True)
    ]  # fmt: skip
    api = COCO(str(tmp_path / "t.json"))
    evaluation = COCOeval(api, api.loadRes(rows), "bbox")
    evaluation.params.maxDets = list(most)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
    expected = {f"coco/bbox_{name}": value for name, value in zip(names, evaluation.stats[:6], strict=True)}
    assert figures == pytest.approx(expected, abs=1e-12)
    # pycocotools gives its first figure at 100 boxes an image alone.
    shown = figures["coco/bbox_mAP" if most[-1] == 100 else "coco/bbox_mAP_50"]
    assert 0.1 < shown < 0.9
    assert abs(1000 * shown - round(1000 * shown)) > 1e-3


def test_the_boxes_stay_where_a_place_is_named(tmp_path):
    truth, found = truth_and_found(0)
    (tmp_path / "t.json").write_text(json.dumps(truth))
    assert measured(tmp_path / "t.json", found, str(tmp_path / "found")) == measured(
        tmp_path / "t.json", found
    )
    boxes = json.loads((tmp_path / "found.bbox.json").read_text())
    assert len(boxes) == IMAGES * BOXES
    assert boxes[0].keys() == {"image_id", "bbox", "score", "category_id"}


def test_nothing_found_gives_no_figures(tmp_path):
    truth, found = truth_and_found(0)
    (tmp_path / "t.json").write_text(json.dumps(truth))
    empty = {"bboxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    assert measured(tmp_path / "t.json", [{**image, **empty} for image in found]) == {}


def test_every_class_has_the_ap_of_a_set_that_holds_it_alone(tmp_path):
    truth, found = truth_and_found(0)
    truth["annotations"][0]["iscrowd"] = 1
    (tmp_path / "all.json").write_text(json.dumps(truth))
    metric, overall = metric_and_figures(tmp_path / "all.json", found)
    assert [one["name"] for one in metric.of_classes] == ["class 0", "class 1", "class 2"]
    assert sum(one["boxes"] for one in metric.of_classes) == IMAGES * BOXES - 1
    for number, one in enumerate(metric.of_classes):
        kept = [box for box in truth["annotations"] if box["category_id"] == number + 1]
        (tmp_path / "one.json").write_text(json.dumps({**truth, "annotations": kept}))
        alone = measured(tmp_path / "one.json", found)  # the other classes have no box, and so no say
        assert one["AP"] == pytest.approx(100 * alone["coco/bbox_mAP"], abs=0.006)
        assert one["AP50"] == pytest.approx(100 * alone["coco/bbox_mAP_50"], abs=0.006)
        assert one["boxes"] == sum(not box["iscrowd"] for box in kept)
    mean = sum(one["AP"] for one in metric.of_classes) / CLASSES
    assert mean == pytest.approx(100 * overall["coco/bbox_mAP"], abs=0.01)


def corner_case(path: Path, kind: dict[str, int]) -> dict[str, float]:
    """Figures of two right boxes and three wrong ones within a large box of ``kind``, which another one finds."""
    truth, _ = truth_and_found(0)
    placed = [(0, [0.0, 0.0, 200.0, 200.0], kind), (0, [250.0, 100.0, 100.0, 100.0], {}),
              (1, [10.0, 10.0, 50.0, 50.0], {})]  # fmt: skip
    truth["annotations"] = [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            **marks,
        }
        for number, (image, box, marks) in enumerate(placed, 1)
    ]
    path.write_text(json.dumps(truth))
    wrong = [[x, x, x + 50.0, x + 50.0] for x in (5.0, 60.0, 130.0)]
    found = [
        {"img_id": 0, "bboxes": np.array([*wrong, [0, 0, 200, 195], [0, 5, 200, 200], [250, 100, 350, 200]]),
         "scores": np.array([0.9, 0.8, 0.7, 0.95, 0.94, 0.6]), "labels": np.zeros(6, np.int64)},
        {"img_id": 1, "bboxes": np.array([[10.0, 10, 60, 60]]), "scores": np.array([0.5]), "labels": np.zeros(1, int)},
    ]  # fmt: skip
    return measured(path, found)


def test_a_difficult_box_excuses_what_lies_on_it_and_a_crowd_what_lies_in_it(tmp_path):
    # Of seven boxes: two are right, behind three that are wrong, and two lie on the large one.
    assert corner_case(tmp_path / "c.json", {"iscrowd": 1})["coco/bbox_mAP_50"] == 1
    difficult = corner_case(tmp_path / "d.json", {"ignore": 1})["coco/bbox_mAP_50"]
    assert difficult == pytest.approx(2 / 5, abs=0.01)
    # One that counts is found, and its second box is wrong.
    plain = corner_case(tmp_path / "p.json", {})["coco/bbox_mAP_50"]
    assert plain == pytest.approx((34 * 1 + 67 * 3 / 7) / 101, abs=0.01)


def test_what_is_difficult_stays_so_in_the_next_evaluation(tmp_path):
    truth, found = truth_and_found(0)
    for box in truth["annotations"][::3]:
        box["ignore"] = 1
    (tmp_path / "t.json").write_text(json.dumps(truth))
    nothing = {"bboxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    metric, _ = metric_and_figures(tmp_path / "t.json", [{**image, **nothing} for image in found])
    counted = sum(one["boxes"] for one in metric.of_classes)
    assert counted == IMAGES * BOXES - len(truth["annotations"][::3])
    metric, first = metric_and_figures(tmp_path / "t.json", found)
    assert sum(one["boxes"] for one in metric.of_classes) == counted
    for image in found:
        prediction = {name: torch.tensor(image[name]) for name in ("bboxes", "scores", "labels")}
        metric.process(
            {}, [{"img_id": image["img_id"], "ori_shape": (300, 400), "pred_instances": prediction}]
        )
    assert metric.evaluate(size=IMAGES) == first
    assert sum(one["boxes"] for one in metric.of_classes) == counted


def test_boxes_of_images_that_are_not_listed_are_no_class_s(tmp_path):
    truth, found = truth_and_found(0)
    for box in truth["annotations"]:
        if box["category_id"] == 2:
            box["image_id"] = 99
    (tmp_path / "t.json").write_text(json.dumps(truth))
    one, two, _ = metric_and_figures(tmp_path / "t.json", found)[0].of_classes
    assert (two["AP"], two["AP50"], two["boxes"]) == (-1, -1, 0)
    assert one["AP"] > 10


def test_a_class_without_a_box_has_no_ap_and_one_that_is_not_found_has_zero(tmp_path):
    truth, found = truth_and_found(0)
    truth["annotations"] = [box for box in truth["annotations"] if box["category_id"] != 2]
    (tmp_path / "t.json").write_text(json.dumps(truth))
    for image in found:
        kept = image["labels"] != 2
        image |= {name: image[name][kept] for name in ("bboxes", "scores", "labels")}
    first, second, third = metric_and_figures(tmp_path / "t.json", found)[0].of_classes
    assert first["AP"] > 10
    assert (second["AP"], second["AP50"], second["boxes"]) == (-1, -1, 0)
    assert (third["AP"], third["AP50"]) == (0, 0)
    assert third["boxes"] > 0
    nothing = {"bboxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    metric, _ = metric_and_figures(tmp_path / "t.json", [{**image, **nothing} for image in found])
    assert [one["AP"] for one in metric.of_classes] == [0, -1, 0]
