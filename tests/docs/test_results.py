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


def test_the_retrieval_curves_are_those_of_their_file(tmp_path: Path) -> None:
    svg = tmp_path / "retrieval.svg"
    command = [
        sys.executable,
        "benchmarks/retrieval_curves.py",
        "--render",
        "docs/retrieval/h200.json",
        "--svg",
        svg,
    ]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert svg.read_text() == (ROOT / "docs" / "images" / "retrieval.svg").read_text()
    page = {
        line.split("|")[1].strip(): line.replace("*", "")
        for line in PAGE.read_text().splitlines()
        if "_lite0 |" in line
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-2]] for line in printed.splitlines()[2:]]
    assert len(rows) == 6
    for detector, steps, *figures in rows:
        stated = [cell.strip() for cell in page[detector].split("|")[2:-1]]
        assert stated[0].split()[0] == steps
        assert stated[1:] == figures
