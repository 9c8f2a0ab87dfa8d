"""The tables of docs/results.md whose runs are in docs/results/ are what the report makes of those."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
STUDIES = sorted((ROOT / "docs" / "results").glob("*.json"))


def report(page: Path, study: Path) -> str:
    """The page after the report of ``study`` went to the section of the study's name."""
    command = [
        sys.executable,
        "benchmarks/transfer.py",
        "report",
        study,
        "--out",
        page,
        "--section",
        study.stem,
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return page.read_text()


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_a_table_says_what_its_runs_gave(study: Path, tmp_path: Path) -> None:
    page = Path(shutil.copy(PAGE, tmp_path))
    assert report(page, study) == PAGE.read_text()


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_one_changed_figure_changes_the_page(study: Path, tmp_path: Path) -> None:
    runs = json.loads(study.read_text())
    next(run for run in runs if run["last"])["last"]["AP"] += 50
    changed = tmp_path / study.name
    changed.write_text(json.dumps(runs))
    page = Path(shutil.copy(PAGE, tmp_path))
    assert report(page, changed) != PAGE.read_text()


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_runs_name_no_folder_of_the_machine_they_ran_on(study: Path) -> None:
    assert '"/' not in study.read_text()
