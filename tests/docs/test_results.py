"""Tables of the docs' pages of results are what their scripts make of the runs in the repository."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
FOLDER = ROOT / "docs" / "results"
RETRIEVAL = ROOT / "docs" / "retrieval.md"
IMAGE_DOMAIN = ROOT / "docs" / "image-domain-results.md"
STUDIES = sorted(FOLDER.glob("**/*.json"))


def named(study: Path) -> str:
    """The section of the page that has the table of ``study``."""
    return str(study.relative_to(FOLDER).with_suffix(""))


Report = Callable[[Path, Path, str], str]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Report:
    """``report(page, study, section)``: the page after the report of ``study`` went to ``section``."""

    def run(page: Path, study: Path, section: str) -> str:
        agnostic = section.startswith("class_agnostic/")
        script, option = ("class_agnostic.py", "--page") if agnostic else ("transfer.py", "--out")
        # As a process of its own it would import numba and SciPy first: three seconds, forty times.
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        monkeypatch.setattr(
            sys, "argv", [script, "report", str(study), option, str(page), "--section", section]
        )
        runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
        return page.read_text()

    return run


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_a_table_says_what_its_runs_gave(study: Path, tmp_path: Path, report: Report) -> None:
    page = Path(shutil.copy(PAGE, tmp_path))
    assert f"<!-- {named(study)}: begin -->" in page.read_text()
    assert report(page, study, named(study)) == PAGE.read_text()


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_one_changed_figure_changes_the_page(study: Path, tmp_path: Path, report: Report) -> None:
    runs = json.loads(study.read_text())
    row = next(run for run in runs if run.get("last") or run.get("named"))
    row.get("last", row.get("class_agnostic"))["AP"] += 50
    changed = tmp_path / study.name
    changed.write_text(json.dumps(runs))
    page = Path(shutil.copy(PAGE, tmp_path))
    assert report(page, changed, named(study)) != PAGE.read_text()


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_runs_name_no_folder_of_the_machine_they_ran_on(study: Path) -> None:
    assert '"/' not in study.read_text()


def test_the_goals_table_says_what_the_tables_below_it_say() -> None:
    goals, _, below = PAGE.read_text().partition("## Four detectors on a CPU")
    cells = re.findall(r"([+-]\d+\.\d)\**,? \((0\.\d{3})\)", goals)
    assert len(cells) == 8
    for gain, p in cells:
        assert f" | {gain} | {p} | 3 of 3 |" in below


def retrieval_rows(printed: str) -> dict[str, list[str]]:
    """The figures of each detector of what `retrieval_curves.py` printed, without its last column."""
    rows = [[cell.strip() for cell in line.split("|")[1:-2]] for line in printed.splitlines()[2:]]
    return {detector: figures for detector, *figures in rows}


def test_the_curves_of_the_cpu_are_those_of_their_files(tmp_path: Path) -> None:
    files = [
        f"docs/retrieval/{name}_cpu.json"
        for name in ("faster_rcnn", "cascade_rcnn", "retinanet", "fcos", "deformable_detr")
    ]
    svg = tmp_path / "retrieval.svg"
    command = [sys.executable, "benchmarks/retrieval_curves.py", "--render", *files, "--svg", svg]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert svg.read_text() == (ROOT / "docs" / "images" / "retrieval_cpu.svg").read_text()
    rows = retrieval_rows(printed)
    assert len(rows) == 5
    for detector, figures in rows.items():
        assert f"| {detector} | {' | '.join(figures)} |" in RETRIEVAL.read_text().replace("*", "")


@pytest.mark.parametrize(("compared", "page"), [("rates", PAGE), ("teachers", RETRIEVAL)])
def test_two_pretrainings_of_retinanet_are_those_of_their_file(compared: str, page: Path) -> None:
    file = ROOT / "docs" / "retrieval" / f"retinanet_{compared}_cpu.json"
    curves = [run["curves"] for run in json.loads(file.read_text())]
    rows = re.findall(r"^\| (\d+) to (\d+) \| (.*) \|$", page.read_text(), re.MULTILINE)
    assert len(rows) == 5
    for first, last, printed in rows:
        within = [[p for p in curve if int(first) <= p["step"] <= int(last)] for curve in curves]
        means = [
            f"{mean(point[name] for point in points):.2f}" if points else ""
            for points in within
            for name in ("loss_contrastive", "loss_bbox", "retrieval")
        ]
        assert [cell.strip() for cell in printed.split("|")] == means


def test_the_curve_of_the_image_domain_is_that_of_its_file() -> None:
    result = json.loads((ROOT / "docs" / "image_domain" / "simclr_cpu.json").read_text())
    accuracies = [f"{100 * accuracy:.1f}" for _, accuracy in result["knn"]]
    assert f"| k-NN accuracy, % | {' | '.join(accuracies)} |" in IMAGE_DOMAIN.read_text()
    gain = 100 * (result["knn_final"] - result["knn_random"])
    assert f"**{gain:+.1f} points over the random start**" in IMAGE_DOMAIN.read_text()
    assert f"stays at {result['lowest_deviation']:.2f} and more" in IMAGE_DOMAIN.read_text()


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
        for line in RETRIEVAL.read_text().partition("## Whole runs on a CPU")[0].splitlines()
        if "_lite0 |" in line
    }
    rows = retrieval_rows(printed)
    assert len(rows) == 6
    for detector, (steps, *figures) in rows.items():
        stated = [cell.strip() for cell in page[detector].split("|")[2:-1]]
        assert stated[0].split()[0] == steps
        assert stated[1:] == figures
