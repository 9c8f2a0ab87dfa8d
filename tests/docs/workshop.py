"""The folder in which a page's blocks are run, one after the other, and what they find there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from proposals.dataset import open_dataset
from tests.docs.blocks import ROOT, Block

# Pages that go on from a dataset, and do not mine it themselves.
GIVEN_OUT = {
    "docs/convert.md",
    "docs/faq.md",
    "docs/guides/publish-a-dataset.md",
    "docs/mining-job.md",
    "docs/reading.md",
    "docs/concepts/determinism.md",
    "docs/concepts/elastic-order.md",
    "docs/concepts/exact-resume.md",
}


# Pages that merge two datasets they do not mine.
GIVEN_A_AND_B = {"README.md"}


def write_labels(dataset: Path, path: Path) -> None:
    """COCO json: the best boxes of every photograph, as two made-up classes."""
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cup"}],
    }
    for number, record in enumerate(open_dataset(dataset)):
        content["images"].append(
            {"id": number, "file_name": record.uri, "width": record.width, "height": record.height}
        )
        for x1, y1, x2, y2 in record.boxes[:3].tolist():
            place = len(content["annotations"])
            content["annotations"].append(
                {
                    "id": place + 1,
                    "image_id": number,
                    "category_id": 1 + place % 2,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    path.write_text(json.dumps(content))


class Workshop:
    """A working directory with photographs (IMAGES, PHOTOS, images), labels of them (train.json, val.json,
    annotations.json), OUT, or A and B, for pages that do not mine them, and the small `aligndet` of tiny.py in PATH.

    mine: the fixture `mine_folder`.
    """

    def __init__(
        self, folder: Path, page: str, photos: Path, mined: Path, mine: Callable[[Path, Path], Path]
    ) -> None:
        self.folder = folder
        for name in ("IMAGES", "PHOTOS", "images"):
            shutil.copytree(photos, folder / name)
        for name in ("train.json", "val.json", "annotations.json"):
            write_labels(mined, folder / name)
        if page in GIVEN_OUT:
            shutil.copytree(mined, folder / "OUT")
        if page in GIVEN_A_AND_B:
            mine(photos / "more", folder / "A")
            shutil.copytree(photos, folder / "others", ignore=shutil.ignore_patterns("more"))
            mine(folder / "others", folder / "B")
        (folder / "examples").symlink_to(ROOT / "examples")
        commands = folder / ".bin"
        commands.mkdir()
        self._command(commands / "aligndet", f'exec "{sys.executable}" -m tests.docs.tiny "$@"')
        self._command(commands / "python", f'exec "{sys.executable}" "$@"')
        self.environment = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / ".hf"),
        }

    def run(self, block: Block) -> str:
        """Run a block as a reader would paste it; returns what it printed. Fails with that, when it fails."""
        shell = ["bash", "-euo", "pipefail", "-c", block.code]
        done = subprocess.run(
            shell if block.language == "bash" else [sys.executable, "-c", block.code],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, (
            f"{block.name} ended with {done.returncode}:\n{block.code}\n{said[-6000:]}"
        )
        return said

    @staticmethod
    def _command(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
