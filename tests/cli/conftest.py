"""The installed command in a process of its own or in this one, and small things to give to it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch

from aligndet_train.box_domain import build_pretrainer
from aligndet_train.checkpoint import save_checkpoint
from aligndet_train.config import load_run_config
from proposals.cli import main

TINY = Path(__file__).parents[1] / "configs" / "tiny_fcos.py"
ALIGNDET = Path(sys.executable).with_name("aligndet")

_WITHOUT = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {absent!r} else find_spec(name, package)
sys.modules.update(dict.fromkeys({absent!r}))
"""


@pytest.fixture
def aligndet(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``aligndet(*arguments, shadows={"torch": source}, absent=("ray",))`` runs the command.

    shadows: packages that are imported instead of the real ones. absent: as if they were not installed.
    """

    def run(
        *arguments: object, shadows: dict[str, str] | None = None, absent: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "shadows"
        for name, source in (shadows or {}).items():
            file = folder / name.replace(".", "/") / "__init__.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        if absent:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "sitecustomize.py").write_text(_WITHOUT.format(absent=absent))
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1"}
        command = [str(ALIGNDET), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """``run_here(*arguments)``: the command in this process, which has torch already; (exit code, standard output)."""

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["aligndet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capfd.readouterr().out

    return run


@pytest.fixture(scope="session")
def annotations(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO json of the photographs, a box of one class on each."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    images = []
    for number, name in enumerate(names, 1):
        height, width = cv2.imread(str(photos / name)).shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    box = {"bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0, "category_id": 1}
    content = {
        "images": images,
        "annotations": [{"id": image["id"], "image_id": image["id"], **box} for image in images],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path_factory.mktemp("annotations") / "annotations.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a pretraining run of tiny_fcos that has not begun."""
    run = load_run_config(TINY, {}, {})
    model = build_pretrainer(run.stock_model, run.pretrain)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    identity = {"config": run.name, "stock_model": run.stock_model}
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), model, optimizer, 1, identity)
