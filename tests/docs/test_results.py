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
from markdown.extensions.toc import slugify
from scipy.stats import ttest_1samp

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
PAGES = ROOT / "docs" / "studies"
FOLDER = ROOT / "docs" / "results"
RETRIEVAL = ROOT / "docs" / "retrieval.md"
IMAGE_DOMAIN = ROOT / "docs" / "image-domain-results.md"
STUDIES = sorted(FOLDER.glob("**/*.json"))


def named(study: Path) -> str:
    """The section of the page that has the table of ``study``."""
    return str(study.relative_to(FOLDER).with_suffix(""))


def table_of(study: Path, page: str) -> str:
    """What the text of a ``page`` has in the section of ``study``; empty where it has no such section."""
    begin, end = (f"<!-- {named(study)}: {mark} -->" for mark in ("begin", "end"))
    return page.partition(begin)[2].partition(end)[0]


def page_of(study: Path) -> Path:
    """The one page with the section of ``study``."""
    (page,) = [page for page in PAGES.glob("*.md") if table_of(study, page.read_text())]
    return page


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
    original = page_of(study)
    page = Path(shutil.copy(original, tmp_path))
    assert report(page, study, named(study)) == original.read_text()


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_one_changed_figure_changes_the_page(study: Path, tmp_path: Path, report: Report) -> None:
    runs = json.loads(study.read_text())
    row = next(run for run in runs if run.get("last") or run.get("named"))
    row.get("last", row.get("class_agnostic"))["AP"] += 50
    changed = tmp_path / study.name
    changed.write_text(json.dumps(runs))
    original = page_of(study)
    page = Path(shutil.copy(original, tmp_path))
    assert report(page, changed, named(study)) != original.read_text()


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_runs_name_no_folder_of_the_machine_they_ran_on(study: Path) -> None:
    assert '"/' not in study.read_text()


ROW = re.compile(
    r"^\| (?P<detector>[^|]+) \| (?P<epochs>\d+) epochs \| (?P<without>[^|]+) \| (?P<pretrained>[^|]+) "
    r"\| \[(?P<gain>[^]]+)\]\(studies/(?P<page>[\w-]+\.md)[^)]*\) \| (?P<p>[\d.]+) "
    r"\| (?P<seeds>\d) \| (?P<goal>[^|]+) \|(?P<others>.*)\|$",
    re.MULTILINE,
)
GOALS = list(ROW.finditer(PAGE.read_text()))


def test_there_is_a_goal_for_either_schedule_of_four_detectors() -> None:
    assert len(GOALS) == 8
    assert len({row["detector"] for row in GOALS}) == 4


@pytest.mark.parametrize("row", GOALS, ids=lambda row: f"{row['detector']}, {row['epochs']}")
def test_a_row_of_the_goals_table_is_of_the_study_that_it_links_to(row: re.Match[str]) -> None:
    lines = (PAGES / row["page"]).read_text().splitlines()
    seeds = f"{row['seeds']} of {row['seeds']}"
    assert any("| backbone only |" in line and f"| {row['without']} |" in line for line in lines)
    assert any(
        f"| {row['pretrained']} |" in line and f" | {row['gain']} | {row['p']} | {seeds} |" in line
        for line in lines
    )
    assert row["goal"].endswith(", missed") == (unrounded(row) < float(row["goal"].split(",")[0]))


def unrounded(row: re.Match[str]) -> float:
    """The gain of a row of the goals table, from its runs where they were kept."""
    page, cells = (PAGES / row["page"]).read_text(), f" | {row['gain']} | {row['p']} |"
    study = next((study for study in STUDIES if cells in table_of(study, page)), None)
    if study is None:
        return float(row["gain"])
    finals = [run for run in json.loads(study.read_text()) if run.get("stage") == "final"]
    assert len({run["arm"] for run in finals}) == 2
    without, pretrained = (
        mean(run["last"]["AP"] for run in finals if (run["arm"] == "backbone") == baseline)
        for baseline in (True, False)
    )
    return pretrained - without


@pytest.mark.parametrize("row", GOALS, ids=lambda row: f"{row['detector']}, {row['epochs']}")
def test_what_other_studies_gained_is_in_them(row: re.Match[str]) -> None:
    others = re.findall(r"\[([^]]+)\]\(studies/([\w-]+\.md)[^)]*\)(?: \(p = ([\d.]+)\))?", row["others"])
    assert bool(others) == bool(row["others"].strip())
    for gains, page, p in others:
        for gain in gains.split(", "):
            assert f" | {gain} | {p}" in (PAGES / page).read_text()


REMAINS = re.findall(
    r"^\| [^|]+ \| (\S+) \| ([\d.]+) \| (\S+) \| ([\d.]+) \| \[(\w+)\]\(studies/",
    PAGE.read_text(),
    re.MULTILINE,
)
FORMS = ("+.1f", ".2f", "+.1f", ".3f")


def test_what_remains_of_the_long_schedules_is_what_their_runs_gave() -> None:
    assert len(REMAINS) == 3
    for *stated, study in REMAINS:
        finals = [
            run for run in json.loads((FOLDER / f"{study}.json").read_text()) if run["stage"] == "final"
        ]
        figures = []
        for metric in ("AP50", "AP75"):
            by_seed = {(run["arm"] == "backbone", run["seed"]): run["last"][metric] for run in finals}
            gains = [by_seed[False, seed] - by_seed[True, seed] for seed in range(3)]
            figures += [mean(gains), ttest_1samp(gains, 0).pvalue]
        assert all(gain > 0 for gain in gains)  # of AP75, which the page says of each run
        assert stated == [f"{figure:{form}}" for figure, form in zip(figures, FORMS, strict=True)]


def section_of(page: str, anchor: str) -> str:
    """From the heading that ``anchor`` leads to, to the next of its kind; without an anchor the whole page."""
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    sections = zip(parts[1::2], parts[2::2], strict=True)
    return next(text for title, text in sections if slugify(title, "-") == anchor) if anchor else page


SCREEN = re.findall(
    r"^\| \[.*?\]\(docs/studies/([\w-]+\.md)"
    r"#?(\S*?)\).*\| (\d+) epochs \| (\S+) \| \**([\d.]+)\** \| (\S+) \| (\S+) \|$",
    (ROOT / "README.md").read_text(),
    re.MULTILINE,
)


def test_the_first_screen_has_the_rows_of_the_goals_table() -> None:
    assert [(epochs, gain, p) for _, _, epochs, _, _, gain, p in SCREEN] == [
        (row["epochs"], row["gain"], row["p"]) for row in GOALS
    ]


@pytest.mark.parametrize("row", SCREEN, ids=lambda row: f"{row[0]}, {row[2]}")
def test_a_row_of_the_first_screen_is_of_the_section_that_it_names(row: tuple[str, ...]) -> None:
    page, anchor, _, without, pretrained, gain, p = row
    section = section_of((PAGES / page).read_text(), anchor)
    rows = [line.split(" | ") for line in section.splitlines()]
    (found,) = (one for one in rows if one[8:10] == [gain, p] and "box-domain" in one[3])
    baseline = next(one for one in rows if one[:3] == found[:3] and one[3] == "backbone only")
    assert [baseline[5].split()[0], found[5].split()[0]] == [without, pretrained]


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


@pytest.mark.parametrize(("compared", "page"), [("rates", PAGES / "retinanet.md"), ("teachers", RETRIEVAL)])
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
