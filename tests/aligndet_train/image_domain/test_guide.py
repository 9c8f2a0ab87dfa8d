"""The guide's five commands on a few photographs, with tiny networks: what comes out was trained by what went in."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import open_dataset
from tests.aligndet_train.conftest import TINY
from tests.aligndet_train.image_domain.conftest import TINY_SIMCLR

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "fully-unsupervised.md"
CONFIG = str(TINY["faster_rcnn"])
VERBS = ("mine", "pretrain-backbone", "pretrain", "export", "finetune")


def commands() -> list[list[str]]:
    """The words of the guide's first block, line by line."""
    block = re.search(r"```bash\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for line in block[1].splitlines()]


def tiny(words: list[str]) -> list[str]:
    """A command of the guide with the sizes that a CPU test can afford."""
    small = [
        w
        for key, value in TINY_SIMCLR.items()
        if key != "batch_size"
        for w in ("--cfg-options", f"{key}={value}")
    ]
    extra = {
        "mine": [],
        "pretrain-backbone": ["--iterations", "3", "--batch-size", "4", "--workers", "0", *small],
        "pretrain": ["--iterations", "2", "--batch-size", "2", "--workers", "0"],
        "export": [],
        "finetune": [
            "--epochs",
            "1",
            "--batch-size",
            "4",
            "--lr",
            "0.01",
            "--image-size",
            "128x96",
            "--workers",
            "0",
        ],
    }[words[1]]
    replaced = [CONFIG if word in ("resnet50", "faster_rcnn") else word for word in words[1:]]
    return ["--config" if word == "--detector" else word for word in replaced] + extra


def write_labels(dataset: Path, path: Path) -> None:
    """The best boxes of every photograph, as two made-up classes."""
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    for number, record in enumerate(open_dataset(dataset)):
        content["images"].append(
            {"id": number, "file_name": record.uri, "width": record.width, "height": record.height}
        )
        for x1, y1, x2, y2 in record.boxes[:3].tolist():
            size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            place = len(content["annotations"])
            content["annotations"].append(
                {"id": place + 1, "image_id": number, "category_id": 1 + place % 2, **size}
            )
    path.write_text(json.dumps(content))


def check_outcome(folder: Path) -> None:
    """The exported backbone is the trained one, neck and heads came with it, and fine-tuning finished."""
    trained = torch.load(folder / "B" / "backbone.pth", weights_only=True)["state_dict"]
    exported = torch.load(folder / "MODEL.pth", weights_only=True)["state_dict"]
    inside = {
        name.removeprefix("backbone."): value
        for name, value in exported.items()
        if name.startswith("backbone.")
    }
    assert inside.keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in inside.items())
    assert {name.split(".")[0] for name in exported} == {"backbone", "neck", "rpn_head", "roi_head"}
    assert (folder / "F" / "epoch_1.pth").exists()


def test_the_guide_has_the_five_verbs_in_order():
    assert [words[:2] for words in commands()] == [["aligndet", verb] for verb in VERBS]


def test_four_commands_of_the_guide_on_a_mined_dataset(mined_dataset, photos, tmp_path, monkeypatch):
    shutil.copytree(mined_dataset, tmp_path / "OUT")
    shutil.copytree(photos, tmp_path / "PHOTOS")
    write_labels(mined_dataset, tmp_path / "train.json")
    monkeypatch.chdir(tmp_path)
    for words in commands()[1:]:
        result = CliRunner().invoke(build_app(), tiny(words))
        assert result.exit_code == 0, f"{words}: {result.output} {result.exception!r}"
        if words[1] == "pretrain":
            assert ", 0 unexpected" in result.output
    check_outcome(tmp_path)


@pytest.mark.slow
def test_all_five_commands_as_processes(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "IMAGES")
    shutil.copytree(photos, tmp_path / "PHOTOS")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for words in commands():
        if words[1] == "finetune":
            write_labels(tmp_path / "OUT", tmp_path / "train.json")
        done = subprocess.run(
            [sys.executable, "-m", "proposals", *tiny(words)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
    check_outcome(tmp_path)
