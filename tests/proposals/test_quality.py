"""Recall against pycocotools, pairing of images, VOC, the verb."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import open_dataset
from proposals.errors import AlignDetError
from proposals.ground_truth import read_ground_truth
from proposals.quality import (
    ALL,
    AREA_K,
    AREAS,
    IOUS,
    KS,
    measure_boxes,
    measure_dataset,
    measure_datasets,
    pair_images,
)

_SHARED = Path(__file__).parents[3] / "shared" / "data" / "coco_permissive"


def _pycocotools(content, boxes):
    """(recall [IOUS, KS], AR at AREA_K by area) of xyxy arrays, one per image of a COCO dict."""
    truth = COCO()
    truth.dataset = json.loads(json.dumps(content))
    results = [
        {"image_id": image["id"], "category_id": 1, "score": -rank, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for image, array in zip(content["images"], boxes, strict=True)
        for rank, (x1, y1, x2, y2) in enumerate(array.astype(np.float64).tolist())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = COCOeval(truth, truth.loadRes(results), "bbox")
        found.params.useCats, found.params.maxDets = 0, [*KS[:-1], 10**6]
        found.params.areaRng = [[0, 1e10], *map(list, AREAS.values())]
        found.evaluate()
        found.accumulate()
    recall = found.eval["recall"][:, 0]
    recall = np.where(recall < 0, np.nan, recall)
    return recall[:, 0], dict(zip(AREAS, recall[:, 1:, KS.index(AREA_K)].mean(axis=0), strict=True))


def _coco(annotations, images):
    return {
        "images": [
            {"id": 7 * i + 3, "file_name": f"{i}.jpg", "width": 200, "height": 200} for i in range(images)
        ],
        "categories": [{"id": c, "name": f"c{c}"} for c in (9, 1, 4)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": 7 * i + 3,
                "category_id": c,
                "bbox": b,
                "area": b[2] * b[3] * f,
                "iscrowd": crowd,
            }
            for n, (i, c, b, f, crowd) in enumerate(annotations)
        ],
    }


def _write(content, folder):
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def _random_case(seed):
    rng = np.random.default_rng(seed)
    images, coarse = int(rng.integers(1, 5)), rng.choice([1, 16])  # coarse corners make equal overlaps
    boxes, annotations = [], []
    for i in range(images):
        low = rng.integers(0, 120, (int(rng.integers(1, 60)), 2)) // coarse * coarse
        sides = (rng.integers(1, 110, low.shape) // coarse + 1) * coarse
        boxes.append(np.concatenate([low, low + sides], axis=1).astype(np.float32))
        for _ in range(int(rng.integers(0, 8))):
            near = boxes[-1][rng.integers(len(boxes[-1]))].astype(float)
            corner = (near[:2] + rng.integers(-8, 8, 2)).tolist()
            size = np.maximum(near[2:] - near[:2] + rng.integers(-9, 9, 2), 1).tolist()
            crowd, area = int(rng.random() < 0.2), float(rng.uniform(0.5, 1))
            annotations.append((i, int(rng.choice([1, 4, 9])), [*corner, *size], area, crowd))
    return _coco(annotations, images), boxes


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_recall_is_pycocotools(tmp_path_factory, seed):
    content, boxes = _random_case(seed)
    found = measure_boxes(boxes, read_ground_truth(_write(content, tmp_path_factory.mktemp("truth"))))
    recall, by_area = _pycocotools(content, boxes)
    assert np.allclose(found.recall, recall, rtol=0, atol=1e-6, equal_nan=True)
    for name, value in by_area.items():
        assert found.area_recall[name] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_an_area_between_two_ranges_counts_in_both_as_in_pycocotools(tmp_path):
    # The small box is found, and of the two at the limits the one of 32 x 32.
    annotations = [(0, 1, [60 * i, 0, side, side], 1, 0) for i, side in enumerate((16, 32))]
    annotations.append((0, 1, [0, 100, 96, 96], 1, 0))
    content = _coco(annotations, 1)
    boxes = [np.array([[60, 0, 92, 32]], np.float32)]
    found = measure_boxes(boxes, read_ground_truth(_write(content, tmp_path)))
    assert found.area_recall == pytest.approx({"small": 0.5, "medium": 0.5, "large": 0.0})
    assert found.area_recall == pytest.approx(_pycocotools(content, boxes)[1])


@pytest.fixture(scope="module")
def truth_of_photos(mined_dataset, tmp_path_factory):
    """COCO ground truth of the photographs: some of their proposals, moved a little."""
    rng, dataset = np.random.default_rng(0), open_dataset(mined_dataset)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "pot"}],
    }
    for i, record in enumerate(dataset):
        image = {"id": i, "file_name": record.uri, "width": record.width, "height": record.height}
        content["images"].append(image)
        for x1, y1, x2, y2 in record.boxes[rng.permutation(len(record.boxes))[:5]].tolist():
            shift = rng.uniform(-6, 6, 2)
            box = [x1 + shift[0], y1 + shift[1], x2 - x1, y2 - y1]
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": i,
                    "category_id": 1 + i % 2,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    return _write(content, tmp_path_factory.mktemp("truth"))


def test_a_mined_dataset_scores_as_pycocotools_says(mined_dataset, truth_of_photos):
    dataset = open_dataset(mined_dataset)
    quality, pairing = measure_dataset(dataset, read_ground_truth(truth_of_photos))
    recall, _ = _pycocotools(json.loads(truth_of_photos.read_text()), [record.boxes for record in dataset])
    assert np.allclose(quality.recall, recall, rtol=0, atol=1e-6)
    assert quality.average_recall[ALL] == pytest.approx(recall[:, -1].mean(), abs=1e-6)
    assert 0.1 < quality.average_recall[ALL] < 1
    assert pairing.paired == quality.images == 8
    assert quality.truths == 40


def test_abo_is_the_best_overlap_averaged_by_class(tmp_path):
    annotations = [
        (0, 1, [0, 0, 10, 10], 1, 0),
        (0, 1, [50, 50, 10, 10], 1, 0),
        (0, 4, [0, 0, 10, 20], 1, 0),
        (0, 9, [0, 0, 9, 9], 1, 1),
    ]
    boxes = [np.array([[0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 55]], np.float32)]
    found = measure_boxes(boxes, read_ground_truth(_write(_coco(annotations, 1), tmp_path)))
    assert found.abo == pytest.approx({"c1": 0.75, "c4": 1.0})  # the crowd of c9 is not asked for
    assert found.mabo == pytest.approx(0.875)


def test_images_pair_by_path_then_by_name(mined_dataset, truth_of_photos, tmp_path):
    content = json.loads(truth_of_photos.read_text())
    first, second, third = content["images"][:3]
    first["file_name"] = f"val/{first['file_name']}"
    second["width"] += 1
    third["file_name"] = "elsewhere.jpg"
    quality, pairing = measure_dataset(
        open_dataset(mined_dataset), read_ground_truth(_write(content, tmp_path))
    )
    assert quality.images == 6
    assert quality.truths == 30
    assert pairing.only_truth == ["elsewhere.jpg"]
    assert len(pairing.only_dataset) == len(pairing.resized) == 1
    content["images"].append({**first, "id": 99, "file_name": f"train/{Path(first['file_name']).name}"})
    _, ambiguous = measure_dataset(open_dataset(mined_dataset), read_ground_truth(_write(content, tmp_path)))
    assert len(ambiguous.only_truth) == 3


def test_two_images_of_one_file_name_are_not_paired_by_it(tmp_path):
    truth = read_ground_truth(_write(_coco([(0, 1, [0, 0, 5, 5], 1, 0)], 2), tmp_path))
    sizes = np.full((3, 2), 200)
    found = pair_images(["a/0.jpg", "b/0.jpg", "a/1.jpg"], sizes, truth)
    assert found.truth.tolist() == [-1, -1, 1]
    assert found.only_dataset == ["a/0.jpg", "b/0.jpg"]
    assert found.only_truth == ["0.jpg"]


def test_nothing_in_common_is_an_error_that_shows_both_names(mined_dataset, tmp_path):
    truth = read_ground_truth(_write(_coco([(0, 1, [0, 0, 5, 5], 1, 0)], 1), tmp_path))
    with pytest.raises(AlignDetError, match=r"'astronaut.jpg' here, '0.jpg' there"):
        measure_dataset(open_dataset(mined_dataset), truth)


_VOC = """<annotation><filename>a.jpg</filename><size><width>20</width><height>30</height></size>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>"""


def test_voc_corners_are_inside_and_count_from_one(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(_VOC)
    truth = read_ground_truth(tmp_path)
    assert truth.names == ["a.jpg"]
    assert truth.sizes.tolist() == [[20, 30]]
    assert truth.classes == ("cat", "dog")
    assert dict(zip(truth.labels.tolist(), truth.boxes.tolist(), strict=True)) == {
        1: [0, 2, 10, 10],
        0: [1, 1, 3, 3],
    }
    assert truth.ignore.tolist() == [True, False]
    found = measure_boxes([np.array([[0, 2, 10, 12]], np.float32)], truth)
    assert found.average_recall[1] == 1
    assert found.truths == 1


_EIGHT = _coco([(0, 1, [0] * 8, 1, 0)], 1)


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps(_EIGHT), '{"images": [{}], "annotations": [], "categories": []}', "7"]
)
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(AlignDetError, match="is not a COCO annotation file"):
        read_ground_truth(path)


def test_without_an_object_there_is_no_recall(tmp_path):
    found = measure_boxes([np.zeros((3, 4), np.float32)], read_ground_truth(_write(_coco([], 1), tmp_path)))
    assert (found.truths, found.proposals, found.abo) == (0, 3, {})
    assert np.isnan(found.recall).all()
    assert np.isnan(found.mabo)


def test_missing_or_broken_ground_truth_is_named(tmp_path):
    with pytest.raises(AlignDetError, match="cannot be read"):
        read_ground_truth(tmp_path / "none.json")
    with pytest.raises(AlignDetError, match="no VOC annotation"):
        read_ground_truth(tmp_path)
    (tmp_path / "a.xml").write_text("<annotation>")
    with pytest.raises(AlignDetError, match="not a VOC annotation"):
        read_ground_truth(tmp_path)
    (tmp_path / "a.xml").write_text(_VOC.replace("<xmin>1<", "<xmin>one<"))
    with pytest.raises(AlignDetError, match="numeric bndbox"):
        read_ground_truth(tmp_path)


def test_the_verb_prints_tables_and_json(mined_dataset, truth_of_photos):
    arguments = ["recall", str(mined_dataset), "--gt", str(truth_of_photos)]
    shown = CliRunner().invoke(
        build_app(), [*arguments, "--compare", str(mined_dataset), "--per-class"], env={"COLUMNS": "120"}
    )
    assert shown.exit_code == 0, shown.output
    assert all(text in shown.output for text in ("MABO", "side by side", "+0.0", "40 objects in 8 images"))
    found = json.loads(CliRunner().invoke(build_app(), [*arguments, "--json"]).output)
    assert found["AR"]["all"] == pytest.approx(np.mean(list(found["recall"]["all"].values())))
    assert list(found["recall"]["10"]) == [f"{iou:.2f}" for iou in IOUS]
    assert not any(found["left_out"].values())


def test_datasets_are_compared_over_the_images_that_both_have(
    mined_dataset, photos, mine_folder, truth_of_photos, tmp_path
):
    some = shutil.copytree(photos, tmp_path / "some", ignore=shutil.ignore_patterns("cat.jpg", "more"))
    part = mine_folder(some, tmp_path / "part")
    content = json.loads(truth_of_photos.read_text())
    content["images"] = [image for image in content["images"] if image["file_name"] != "china.jpg"]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    truth = _write(content, tmp_path)
    arguments = ["recall", str(mined_dataset), "--gt", str(truth), "--compare", str(part)]
    found = json.loads(CliRunner().invoke(build_app(), [*arguments, "--json"]).output)["datasets"]
    whole, less = found
    # The boxes of an image do not depend on the others: over one set of images the two datasets score the same.
    assert {**whole, "dataset": "", "left_out": {}} == {**less, "dataset": "", "left_out": {}}
    assert whole["images"] == 4
    assert len(whole["left_out"]["not_in_the_other_dataset"]) == 3
    assert "cat.jpg" in whole["left_out"]["not_in_the_other_dataset"]
    assert less["left_out"]["not_in_the_other_dataset"] == []
    assert len(less["left_out"]["only_in_ground_truth"]) == 3
    alone = json.loads(CliRunner().invoke(build_app(), [*arguments[:-2], "--json"]).output)
    assert alone["images"] == 7
    assert alone["AR"]["all"] != whole["AR"]["all"]
    shown = CliRunner().invoke(build_app(), arguments, env={"COLUMNS": "120"}).output
    assert "left out: 3 images that the other dataset cannot be scored on" in shown


@pytest.mark.parametrize("name", ["\x1b[31m\x1b]0;x\x07.jpg", "a\n.jpg", "\ud800.jpg"])
def test_names_that_a_terminal_would_obey_are_printed_spelled_out(
    mined_dataset, truth_of_photos, tmp_path, name
):
    content = json.loads(truth_of_photos.read_text())
    content["images"].append({"id": 99, "file_name": name, "width": 9, "height": 9})
    content["categories"][0]["name"] = name
    arguments = ["recall", str(mined_dataset), "--gt", str(_write(content, tmp_path)), "--per-class"]
    shown = CliRunner().invoke(build_app(), arguments, env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert shown.output.count(repr(name)) == 2
    assert not set(shown.output) & set("\x1b\x07\ud800")


def test_datasets_without_a_common_image_are_not_compared(photos, mine_folder, truth_of_photos, tmp_path):
    roots = []
    for name in ("cat.jpg", "coffee.jpg"):
        (tmp_path / Path(name).stem).mkdir()
        shutil.copy(photos / name, tmp_path / Path(name).stem)
        roots.append(mine_folder(tmp_path / Path(name).stem, tmp_path / f"mined_{name}"))
    with pytest.raises(AlignDetError, match="nothing can be compared"):
        measure_datasets([open_dataset(root) for root in roots], read_ground_truth(truth_of_photos))


@pytest.mark.skipif(not _SHARED.is_dir(), reason="the development photographs are not beside the checkout")
def test_real_ground_truth_is_read():
    truth = read_ground_truth(_SHARED / "annotations.json")
    assert len(truth.names) == 363
    assert len(truth.area) == 2357
