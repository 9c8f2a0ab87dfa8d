"""The arrows of the architecture: what each floor may import, checked statically and by running."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_WALK = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
loaded = {"torch", "torchvision", "ray", "mmdet", "mmengine", "mmcv", "webdataset"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded else 0)
"""
_COMMAND = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # as if it were not installed
from proposals.cli import main
main()
"""


def _python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    wide = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=wide, timeout=120)


def test_import_contracts_hold():
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=_ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_floor_1_and_the_mining_half_load_neither_ray_nor_torch():
    done = _python(_WALK, "proposals", "pipeline")
    assert done.returncode == 0, done.stderr


def test_what_computes_no_boxes_loads_no_compiler():
    """It is half of what their imports cost: of a driver, of each of Ray's workers, of who opens a dataset."""
    modules = "pipeline.cli, pipeline.driver, pipeline.job, pipeline.repair, pipeline.ray_executor, pipeline.shard_task"
    done = _python(f"import sys, {modules}, proposals.dataset.verify; assert 'numba' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["mine", "--help"],
        ["show", "--help"],
        ["verify", "--help"],
        ["merge", "--help"],
    ],
)
def test_help_works_without_the_heavy_halves(arguments):
    done = _python(_COMMAND, "ray,torch,torchvision,mmdet,cv2,pyarrow,numba,numpy", *arguments)
    assert done.returncode == 0, done.stderr


def test_mining_without_ray_names_the_extra():
    asked = _python(_COMMAND, "ray", "mine", "--help")
    assert "pip install 'aligndet[mine]'" in asked.stdout
    done = _python(_COMMAND, "ray", "mine", "in", "out")
    assert done.returncode == 3
    assert "pip install 'aligndet[mine]'" in done.stderr
    assert "Traceback" not in done.stderr
