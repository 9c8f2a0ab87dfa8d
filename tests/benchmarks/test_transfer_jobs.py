"""What `benchmarks/transfer.py run` plans: equal arms, rates chosen on pictures that nothing is reported of."""

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import require_apart
from safetensors.torch import load_file, save_file
from transfer import command_line
from transfer_jobs import Job, every_job
from transfer_pack import halve, hold_out, pack_labelled, pack_pool

from proposals.errors import AlignDetError
from tests.benchmarks.packs import labelled, small_pack


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return small_pack(tmp_path / "PACK")


def planned(pack: Path, *options: str) -> list[Job]:
    words = ["run", str(pack), "--work-dir", str(pack.parent / "W"), "--no-amp", *options]
    return every_job(command_line().parse_args(words))


def finals(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if job.labels.get("stage") == "final"]


ONE = ("--detectors", "fcos_lite0", "--schedules", "short", "--fractions", "100")


def test_the_arms_differ_in_their_weights_alone(pack):
    by_arm = {}
    for job in finals(planned(pack, *ONE, "--rates", "0.006", "--seeds", "1")):
        lines = job.settings()
        weights = [line for line in lines if line.startswith("--weights")]
        own = [line for line in lines if line.startswith("--work-dir")]
        by_arm[job.labels["arm"]] = ([line for line in lines if line not in weights + own], weights)
    assert {arm: weights for arm, (_, weights) in by_arm.items()} == {
        "backbone": [],
        "box": ["--weights box.safetensors"],
        "keep": ["--weights keep.safetensors"],
    }
    assert by_arm["backbone"][0] == by_arm["box"][0] == by_arm["keep"][0]


def test_rates_are_chosen_on_pictures_that_are_not_reported(pack):
    tuning = [job for job in planned(pack, *ONE) if job.labels.get("stage") == "tune"]
    assert len(tuning) == 3 * 3
    assert {tuple(path.name for path in job.inputs) for job in tuning} == {
        ("tune_train.json", "tune_val.json")
    }
    assert not finals(planned(pack, *ONE)), "before a rate is chosen"


@pytest.mark.parametrize(
    ("split", "names", "first_held", "count"),
    [(hold_out, ("tune_train", "tune_val"), 0, 5), (halve, ("train", "val"), 1, 11)],
)
def test_held_out_pictures_are_training_pictures_each_in_one_part(pack, split, names, first_held, count):
    content = labelled(23)
    (pack / "train.json").write_text(json.dumps(content))
    split(pack)
    train, val = (json.loads((pack / f"{name}.json").read_text()) for name in names)
    ids = [[image["id"] for image in half["images"]] for half in (train, val)]
    assert sorted(ids[0] + ids[1]) == [image["id"] for image in content["images"]]
    assert (ids[1][0], len(ids[1])) == (first_held, count)
    for half, inside in zip((train, val), ids, strict=True):
        assert {box["image_id"] for box in half["annotations"]} == set(inside)
        assert half["categories"] == content["categories"]


def test_labels_of_a_voc_folder_are_packed_with_boxes_that_fit_the_small_pictures(tmp_path):
    voc = tmp_path / "VOC"
    for folder in ("Annotations", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    cv2.imwrite(str(voc / "JPEGImages" / "one.jpg"), np.full((480, 640, 3), 99, np.uint8))
    (voc / "Annotations" / "one.xml").write_text(
        "<annotation><filename>one.jpg</filename><size><width>640</width><height>480</height><depth>3</depth></size>"
        "<object><name>cell</name><bndbox><xmin>101</xmin><ymin>41</ymin><xmax>300</xmax><ymax>140</ymax></bndbox>"
        "</object></annotation>"
    )
    pack_labelled(voc, None, tmp_path, "train", 85)
    content = json.loads((tmp_path / "train.json").read_text())
    (box,), (image,) = content["annotations"], content["images"]
    assert (box["bbox"], box["area"]) == ([50, 20, 100, 50], 5000)
    small = cv2.imread(str(tmp_path / "labelled" / image["file_name"]))
    assert small.shape == (image["height"], image["width"], 3) == (240, 320, 3)


def test_a_picture_is_never_packed_over_its_original(tmp_path):
    (tmp_path / "PACK").mkdir()
    original = tmp_path / "1.jpg"
    cv2.imwrite(str(original), np.full((480, 640, 3), 99, np.uint8))
    for name in (str(original), "../PACK/../1.jpg"):
        content = labelled(1)
        content["images"][0] |= {"file_name": name, "width": 640, "height": 480}
        (tmp_path / "labels.json").write_text(json.dumps(content))
        with pytest.raises(AlignDetError, match="below --images"):
            pack_labelled(tmp_path / "labels.json", tmp_path / "PACK", tmp_path / "PACK", "train", 85)
    assert cv2.imread(str(original)).shape == (480, 640, 3)


def test_two_pictures_of_one_name_are_refused_and_boxes_of_none_left_out(tmp_path):
    content = labelled(1)
    content["images"][0] |= {"width": 640, "height": 480}
    content["annotations"].append({**content["annotations"][0], "id": 9, "image_id": 9})
    for half in ("A", "B"):
        (tmp_path / half).mkdir()
        cv2.imwrite(
            str(tmp_path / half / content["images"][0]["file_name"]), np.zeros((480, 640, 3), np.uint8)
        )
        (tmp_path / half / "labels.json").write_text(json.dumps(content))
    out = tmp_path / "PACK"
    packed = pack_labelled(tmp_path / "A" / "labels.json", None, out, "train", 85)
    assert len(json.loads((out / "train.json").read_text())["annotations"]) == 1
    with pytest.raises(AlignDetError, match=r"B/0\.jpg and .*A/0\.jpg are both named 0\.jpg"):
        pack_labelled(tmp_path / "B" / "labels.json", None, out, "val", 85, packed)
    with pytest.raises(AlignDetError, match="below --images"):
        pack_labelled(out / "train.json", out / "labelled", out, "again", 85)


def test_what_is_packed_lies_outside_of_the_pack(tmp_path):
    (tmp_path / "IN" / "pool").mkdir(parents=True)
    for out, pool in (
        (tmp_path / "IN", tmp_path / "IN" / "pool"),
        (tmp_path / "IN" / "pool" / "P", tmp_path / "IN"),
    ):
        with pytest.raises(SystemExit, match="inside of the other"):
            require_apart(out, (None, pool))
    require_apart(tmp_path / "PACK", (tmp_path / "IN" / "pool", None))


RESNET = ("--detectors", "fcos_resnet18", *ONE[2:], "--rates", "0.006", "--seeds", "1")


def test_a_backbone_of_our_own_is_where_every_arm_begins(pack):
    weights = pack / "backbone.pth"
    with pytest.raises(SystemExit, match=r"backbone\.pth.*pretrain-backbone"):
        planned(pack, *RESNET, "--backbone-weights", str(weights))
    weights.write_bytes(b"of one run")
    jobs = planned(pack, *RESNET, "--backbone-weights", str(weights))
    assert "--backbone-weights backbone.pth" in jobs[0].settings()
    exports = pack.parent / "W" / "pretrain" / "fcos_resnet18"
    assert {job.labels["arm"]: job.command[-2:] for job in finals(jobs)} == {
        "backbone": ("--backbone-weights", str(weights)),
        "box": ("--weights", str(exports / "box.safetensors")),
        "keep": ("--weights", str(exports / "keep.safetensors")),
    }
    before = [job.settings() for job in jobs if job.marked]
    weights.write_bytes(b"of another")
    again = planned(pack, *RESNET, "--backbone-weights", str(weights))
    after = [job.settings() for job in again if job.marked]
    assert all(old != new for old, new in zip(before, after, strict=True)), "another file of the same name"


def test_a_detector_without_weights_is_not_compared_from_two_random_starts(pack):
    with pytest.raises(SystemExit, match=r"fcos_resnet18 .*--backbone-weights"):
        planned(pack, *RESNET)


def test_a_head_without_a_class_branch_of_its_own_is_refused_before_it_is_pretrained(pack):
    with pytest.raises(SystemExit, match="faster_rcnn_lite0"):
        planned(pack, "--detectors", "faster_rcnn_lite0", *ONE[2:], "--arms", "no-class-branch")


def test_the_class_branch_is_left_out_of_what_was_exported(pack, tmp_path):
    words = ("--rates", "0.006", "--seeds", "1", "--arms", "no-class-branch", "--ablate", "50 proposals")
    jobs = planned(pack, *ONE, *words)
    (export,) = [job for job in jobs if job.name.endswith("no-class-branch")]
    assert finals(jobs)[0].needs == (export.product,)
    (whole,) = export.needs
    whole.parent.mkdir(parents=True)
    names = (
        "neck.fpn_convs.0.conv.weight",
        "bbox_head.cls_convs.0.conv.weight",
        "bbox_head.reg_convs.0.conv.weight",
    )
    save_file({name: torch.full((2,), float(number)) for number, name in enumerate(names)}, whole)
    subprocess.run(export.command, check=True)
    rest = load_file(export.product)
    assert {name: value.tolist() for name, value in rest.items()} == {names[0]: [0, 0], names[2]: [2, 2]}
    again = [*export.command[:2], export.product, tmp_path / "x"]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no bbox_head.cls_convs" in done.stderr


def test_a_tenth_of_the_labels_gets_as_many_steps(pack):
    (pack / "train.10@0.json").write_text(json.dumps(labelled(2)))
    words = ("--detectors", "fcos_lite0", "--schedules", "short", "--arms", "box", "--rates", "0.006")
    jobs = finals(planned(pack, *words, "--seeds", "1"))
    epochs = {job.labels["fraction"]: job.command[job.command.index("--epochs") + 1] for job in jobs}
    assert epochs == {10: "120", 100: "12"}


def test_labels_that_the_pack_lacks_are_named(pack):
    with pytest.raises(SystemExit, match=r"train\.5@0\.json"):
        planned(pack, *ONE[:4], "--fractions", "5", "--rates", "0.006")


def test_an_ablation_whose_pictures_the_pack_lacks_is_refused(pack):
    with pytest.raises(SystemExit, match=r"mined_random.*--ablate"):
        planned(pack, *ONE, "--rates", "0.006", "--ablate", "random boxes")


def test_an_ablation_changes_pretraining_and_nothing_else(pack):
    words = (*ONE, "--rates", "0.006", "--arms", "box", "--seeds", "1")
    before, after = planned(pack, *words)[0], planned(pack, *words, "--ablate", "50 proposals")[-4]
    extra = set(after.settings()) - set(before.settings())
    assert extra == {
        "--cfg-options pretrain.proposals_per_image=50",
        "--work-dir fcos_lite0-50-proposals",
    }


def test_a_pool_keeps_every_picture(tmp_path, photos):
    names = ("a/one.jpg", "b/one.jpg", "b/one.JPEG", "b/two.png")
    for name, photo in zip(names, sorted(photos.iterdir())[:4], strict=True):
        target = tmp_path / "POOL" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    (tmp_path / "POOL" / "notes.txt").write_text("no picture")
    assert pack_pool(tmp_path / "POOL", tmp_path / "pool", 85) == 4
    found = sorted(
        path.relative_to(tmp_path / "pool").as_posix() for path in (tmp_path / "pool").rglob("*.jpg")
    )
    assert found == ["a/one.jpg.jpg", "b/one.JPEG.jpg", "b/one.jpg.jpg", "b/two.png.jpg"]


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(SystemExit, match=r"broken\.jpg"):
        pack_pool(tmp_path, tmp_path / "pool", 85)
