"""The whole study of one detector, tiny: packed, run in slices, reported, and refused with other settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "transfer.py"


def transfer(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def labels(folder: Path, names: list[str]) -> Path:
    """A box in the middle of every picture, of two classes by turns."""
    images, boxes = [], []
    for number, name in enumerate(names, start=1):
        height, width = cv2.imread(str(folder / name)).shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        box = [width / 4, height / 4, width / 2, height / 2]
        boxes.append({"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": box,
                      "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    path = folder / f"{len(names)}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def pictures(photos, tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for photo in sorted(photos.iterdir()):
        if photo.suffix == ".jpg":
            (folder / photo.name).write_bytes(photo.read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_is_packed_run_in_slices_and_reported(pictures, tmp_path):
    names = sorted(path.name for path in pictures.iterdir())
    train = labels(pictures, names[:6])
    pack, work = tmp_path / "PACK", tmp_path / "W"
    done = transfer("pack", pictures, "--train", train, "--images", pictures, "--out", pack,
                    "--seeds", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{len(names)} photographs" in done.stdout
    options = ("run", pack, "--work-dir", work, "--detectors", "fcos_lite0", "--schedules", "short", "--fractions", 100,
               "--arms", "box", "--workers", 0, "--seeds", 1, "--no-amp",
               "--pretrain-options", "pretrain.sampled_boxes=64")  # fmt: skip
    small = (*options, "--image-size", 64, "--rates", 0.006, 0.012)
    first = transfer(*small, "--budget", 1)
    assert first.returncode == os.EX_TEMPFAIL, first.stderr
    assert (work / "pretrain" / "fcos_lite0" / "finished").exists()
    second = transfer(*small)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "6 of 6 known jobs are done, 0 failed" in second.stdout
    rows = transfer("report", work).stdout
    assert "| fcos_lite0 | short | 100 % | + box-domain |" in rows
    assert rows.count("| 1 of 1 |") == 1
    script = SCRIPT.with_name("class_agnostic.py")
    agnostic = subprocess.run(
        [sys.executable, script, "measure", pack, work, "--out", tmp_path / "agnostic.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert agnostic.returncode == 0, agnostic.stderr
    (row,) = json.loads((tmp_path / "agnostic.json").read_text())
    assert row["class_agnostic"].keys() == row["named"].keys() == {"AP", "AP50", "AP75", "AR100"}
    other = transfer(*options, "--image-size", 96, "--rates", 0.006, 0.012)
    assert other.returncode == 1
    assert "- --cfg-options pretrain.views.long_side=89" in other.stderr
    assert "+ --cfg-options pretrain.views.long_side=134" in other.stderr
