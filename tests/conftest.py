"""Small real photographs (from scikit-image's and scikit-learn's wheels) and a dataset mined from them.

Also on a machine with a GPU the suite runs on the CPU, unless the tests marked ``gpu`` are asked for.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import hypothesis
import numpy as np
import pytest
import skimage.data
import sklearn.datasets

from pipeline.begin import begin
from pipeline.commit import commit
from pipeline.image_records import Refusal
from pipeline.plan import make_plan
from pipeline.shard_task import Work, mine_shard
from pipeline.sources import FolderSource, Source
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import library_versions
from proposals.recipe import Recipe

# The gate tries the same examples every time, so that it fails for a change and not for luck; the nightly run searches.
hypothesis.settings.register_profile("gate", derandomize=True, print_blob=True, deadline=None)
hypothesis.settings.register_profile("search", print_blob=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

_LONG_SIDE = 200
# Folders and files of tests that start Ray.
_START_RAY = {"pipeline", "infra", "docs", "cli", "packaging", "test_guide.py"}


def selects_gpu(marks: str) -> bool:
    """Whether ``marks``, what -m says, asks for tests marked gpu."""
    return marks == "" or ("gpu" in marks and "not gpu" not in marks)


def pytest_plugin_registered(manager: pytest.PytestPluginManager) -> None:
    """Hide the GPUs. Called as soon as this file is read: the next conftest imports mmengine, which looks for them."""
    config = manager.get_plugin("pytestconfig")
    # A worker of xdist does not see -m, and inherits what the process that started it has hidden.
    decides = config is not None and "PYTEST_XDIST_WORKER" not in os.environ
    if decides and not selects_gpu(config.known_args_namespace.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes (-n): a file is of one of them, and so is all that starts Ray.

    Nodes of Ray that start at once take each other's ports. (xdist's own groups are lost on pytest 9.2's node ids.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFileAndRay(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _START_RAY & {*Path(file).parts} else file

    return ByFileAndRay(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many blocks of the documentation ran, and which never run and why.

    Here and not in tests/docs: with several processes the one that prints reads this file alone.
    """
    from tests.docs.blocks import RAN, all_blocks, totals

    reports = [report for found in terminalreporter.stats.values() for report in found]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    count = sum(name == RAN for report in calls for name, _ in report.user_properties)
    if count:
        terminalreporter.section("documentation")
        found = all_blocks()
        terminalreporter.write_line(f"{count} shell and Python blocks ran now. {totals(found)}:")
        for block in found:
            if block.reason:
                terminalreporter.write_line(f"  {block.page}:{block.line}: {block.reason}")


def _photographs() -> dict[str, np.ndarray]:
    china, flower = sklearn.datasets.load_sample_images().images
    left, right, _ = skimage.data.stereo_motorcycle()
    return {
        "astronaut": skimage.data.astronaut(),
        "cat": skimage.data.chelsea(),
        "china": china,
        "coffee": skimage.data.coffee(),
        "flower": flower,
        "motorcycle_left": left,
        "motorcycle_right": right,
        "rocket": skimage.data.rocket(),
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 small JPEG photographs, two of them in a subfolder. Read only."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for place, (name, rgb) in enumerate(_photographs().items()):
        factor = _LONG_SIDE / max(rgb.shape[:2])
        small = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        path = folder / ("more" if place >= 6 else "") / f"{name}.jpg"
        cv2.imwrite(str(path), np.ascontiguousarray(small[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


@pytest.fixture(scope="session")
def mine_folder() -> Callable[..., Path]:
    """``mine_folder(images, out, recipe=..., images_per_shard=3)``: the whole job in this process, without Ray.

    images: a folder, or a source. embed=False leaves the images where they are.
    """

    def mine(
        images: Path | Source,
        out: Path,
        recipe: Recipe | None = None,
        images_per_shard: int = 3,
        quarantine: dict[str, Refusal] | None = None,
        embed: bool = True,
    ) -> Path:
        source, recipe = images if isinstance(images, Source) else FolderSource(images), recipe or Recipe()
        plan = make_plan(source.entries(), images_per_shard)
        identity = JobIdentity(
            recipe=recipe,
            source=plan.source(source.kind),
            images_per_shard=images_per_shard,
            versions=library_versions(),
            images=None if embed else source.images,
        )
        workspace = begin(out, plan, identity)
        work = Work(source, out, recipe, workspace.identity.fingerprint(), embed=embed)
        if workspace.finished is None:
            fresh = {task.name: mine_shard(task, work, quarantine=quarantine) for task in workspace.pending}
            commit(workspace, {**workspace.done, **fresh})
        return out

    return mine


@pytest.fixture(scope="session")
def mined_dataset(
    photos: Path, mine_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished dataset: 8 photographs in 3 shards. Read only; open it with `open_dataset`."""
    return mine_folder(photos, tmp_path_factory.mktemp("mined") / "dataset")


@pytest.fixture
def copy(mined_dataset: Path, tmp_path: Path) -> Path:
    """A dataset of eight photographs in three shards, to be damaged."""
    return Path(shutil.copytree(mined_dataset, tmp_path / "copy"))
