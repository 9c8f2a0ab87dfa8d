"""The built package in environments of strangers: the wheel alone and with each extra, and what the sdist holds.

They build and download: `make test-all` runs them.
"""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# One verb of each extra, run in a folder that holds PHOTOS and DATASET.
VERBS = {
    "": ["stats", "DATASET"],
    "mine": ["mine", "PHOTOS", "out", "--workers", "1", "--max-side", "64"],
    "train": ["detectors"],
    "cluster": ["doctor"],
    "s3": ["doctor"],
    "transformers": ["doctor"],
}


def _run(*command: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of wheel and sdist, built from what git has tracked and from nothing else."""
    source = tmp_path_factory.mktemp("source")
    for name in _run("git", "ls-files", "--cached").stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("built")
    _run(sys.executable, "-m", "build", "-o", out, source)
    return out


@pytest.mark.parametrize("extra", VERBS, ids=lambda extra: extra or "plain")
def test_a_fresh_environment_has_a_healthy_command(extra, built, photos, mined_dataset, tmp_path):
    (wheel,) = built.glob("*.whl")
    _run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    _run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        ROOT / "constraints.txt",
        f"{wheel}[{extra}]" if extra else wheel,
    )
    if (
        extra == "train"
    ):  # mmcv-lite brings opencv-python, which overwrites the contrib build: the doctor's repair
        _run(python, "-m", "pip", "uninstall", "-q", "-y", "opencv-python")
        contrib = ["--force-reinstall", "--no-deps", "-c", ROOT / "constraints.txt", "opencv-contrib-python"]
        _run(python, "-m", "pip", "install", "-q", *contrib)
    command = tmp_path / "venv" / "bin" / "aligndet"
    assert "mine" in _run(command, "--help", cwd=tmp_path).stdout
    assert "healthy" in _run(command, "doctor", cwd=tmp_path).stdout
    things = {"PHOTOS": str(photos), "DATASET": str(mined_dataset)}
    _run(command, *(things.get(word, word) for word in VERBS[extra]), cwd=tmp_path)


def test_the_sdist_holds_what_its_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("tests/", "docs/", "benchmarks/", "examples/", "infra/", ".github/")
    tracked = _run("git", "ls-files", "--cached").stdout.splitlines()
    wanted = {name for name in tracked if name.startswith(folders) and (ROOT / name).is_file()}
    assert wanted - inside == set()
    assert {"Makefile", "constraints.txt", "constraints-lowest.txt", "SECURITY.md", ".ci/run"} <= inside
