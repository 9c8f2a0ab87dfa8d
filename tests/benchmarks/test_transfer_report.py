"""The report of the transfer study: what it refuses to average, what it says of failures."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from transfer import command_line
from transfer_report import between_markers, by_cell, read_runs


def run_of(arm: str, seed: int, ap: float, lr: float = 0.01) -> dict[str, Any]:
    return {
        "stage": "final", "detector": "fcos_lite0", "arm": arm, "source": "fcos_lite0", "schedule": "short",
        "fraction": 100, "seed": seed, "lr": lr, "epochs": [{"epoch": 12, "AP": ap}],
        "last": {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2}, "run": {"options": {"amp": False}},
    }  # fmt: skip


def reported(*sources: Path) -> str:
    """What `transfer.py report` prints."""
    args = command_line().parse_args(["report", *map(str, sources)])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        args.verb(args)
    return printed.getvalue()


def write(path: Path, runs: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(runs))
    return path


def test_kept_predictors_are_compared_with_dropped_ones_over_the_seeds_of_both(tmp_path):
    aps = {
        "backbone": (2.0, 2.5, 3.0),
        "box": (5.0, 6.0),
        "keep": (7.0, 9.0, 30.0),
        "no-class-branch": (6.0, 8.0),
    }
    runs = [run_of(arm, seed, ap) for arm, given in aps.items() for seed, ap in enumerate(given)]
    printed = reported(write(tmp_path / "runs.json", runs))
    # 7 - 5 and 9 - 6: t = 2.5 / 0.5 with one degree of freedom.
    assert "| fcos_lite0 | short | 100 % | predictors kept | +2.5 | 0.126 | 2 |" in printed
    # 6 - 5 and 8 - 6: t = 1.5 / 0.5.
    assert "| fcos_lite0 | short | 100 % | class branch left out | +1.5 | 0.205 | 2 |" in printed


def test_the_same_run_in_two_files_is_refused(tmp_path):
    one, two = (
        write(tmp_path / f"{name}.json", [run_of("box", 0, ap)]) for name, ap in (("a", 2.6), ("b", 5.6))
    )
    with pytest.raises(SystemExit, match="two runs of fcos_lite0, short, 100 %, fcos_lite0, box, seed 0"):
        reported(one, two)


def test_rates_that_were_tried_are_told_and_are_no_result(tmp_path):
    tried = {("backbone", 0.01): 3.0, ("backbone", 0.02): 2.5, ("box", 0.01): 4.04, ("box", 0.02): 4.06}
    runs = [{**run_of(arm, 100, ap, lr), "stage": "tune", "rate": lr} for (arm, lr), ap in tried.items()]
    finals = [run_of("backbone", 0, 1.0), run_of("box", 0, 1.5)]
    printed = reported(write(tmp_path / "runs.json", [*finals, *runs]))
    assert "| detector | schedule | pretraining | lr 0.01 | lr 0.02 |" in printed
    assert "| fcos_lite0 | short | backbone only | **3.0** | 2.5 |" in printed
    assert "| fcos_lite0 | short | + box-domain | 4.0 | **4.1** |" in printed
    assert "| fcos_lite0 | short | 100 % | + box-domain | 0.01 | 1.5 |" in printed
    assert "that each rate was chosen on" not in reported(write(tmp_path / "finals.json", finals))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"options": {"amp": False, "epochs": 36}}, "epochs"),
        ({"options": {"amp": False, "image_size": [128, 128]}}, "image_size"),
        ({"val": {"sha256": "b"}}, "what they are measured on"),
        ({"train": {"sha256": "b"}}, "the pictures of seed 0"),
    ],
)
def test_arms_of_different_studies_are_not_paired(tmp_path, changed, what):
    told = {
        "options": {"amp": False, "epochs": 12, "image_size": [160, 160]},
        "val": {"sha256": "a"},
        "train": {"sha256": "a"},
    }
    runs = [{**run_of(arm, 0, 5.0), "run": told} for arm in ("backbone", "box")]
    assert "| +0.0 |" in reported(write(tmp_path / "one.json", runs))
    runs[1]["run"] = {**told, **changed}
    with pytest.raises(SystemExit, match=f"fcos_lite0, short, 100 % differ in {what}"):
        reported(write(tmp_path / "two.json", runs))


def test_seeds_of_different_rates_are_no_mean():
    with pytest.raises(SystemExit, match="different learning rates"):
        by_cell([run_of("box", 0, 5.0, lr=0.006), run_of("box", 1, 5.0, lr=0.012)])


def test_seeds_of_different_backbones_are_no_mean(tmp_path):
    runs = [run_of("backbone", seed, 3.0) for seed in (0, 1)]
    for run in runs:
        run["run"]["backbone_weights"] = {"file": "simclr.pth", "sha256": "a"}
    printed = reported(write(tmp_path / "runs.json", runs))
    assert "| backbone only (simclr.pth) |" in printed
    runs[1]["run"] = {**runs[1]["run"], "backbone_weights": {"file": "simclr.pth", "sha256": "b"}}
    with pytest.raises(SystemExit, match="different backbones"):
        by_cell(runs)


def test_a_backbone_is_named_by_the_seed_that_has_ended(tmp_path):
    runs = [run_of("backbone", seed, 3.0) for seed in (0, 1)]
    runs[1]["run"]["backbone_weights"] = {"file": "simclr.pth", "sha256": "a"}
    runs[0] |= {"last": {}, "epochs": []}
    del runs[0]["run"]
    assert "| backbone only (simclr.pth) |" in reported(write(tmp_path / "runs.json", runs))


@pytest.mark.parametrize(("gain", "shown"), [(0.0, "+0.0"), (0.3, "+0.3")])
def test_arms_that_differ_by_the_same_in_every_seed_have_no_p(gain, shown, tmp_path):
    aps = {"backbone": (9.4, 12.4), "box": (9.4 + gain, 12.4 + gain)}
    runs = [run_of(arm, seed, ap) for arm, given in aps.items() for seed, ap in enumerate(given)]
    printed = reported(write(tmp_path / "runs.json", runs))
    assert f"| {shown} |  | 2 of 2 |" in printed


def test_failed_jobs_are_named_by_the_folder_and_by_its_json(tmp_path):
    work = tmp_path / "W"
    ended = work / "finetune" / "final+box+0"
    ended.mkdir(parents=True)
    run = run_of("box", 0, 5.0)
    figures = {name: run.pop(name) for name in ("epochs", "last", "run")}
    (ended / "labels.json").write_text(json.dumps(run))
    (ended / "results.json").write_text(json.dumps(figures))
    (ended / "finished").touch()
    for name, job in (
        ("finetune/tune+box+0.04/failed", "tune box 0.04"),
        ("pretrain/fcos_lite0/keep.safetensors.failed", "export keep"),
    ):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(json.dumps({"failed": job, "exit": 3}))
    line = "Failed, and with it what needs it: `tune box 0.04` (exit 3); `export keep` (exit 3)."
    first = reported(work)
    assert line in first
    again = reported(write(tmp_path / "runs.json", read_runs(work)))
    assert again == first


PAGE = "# A page\n<!-- t: begin -->\nold\n<!-- t: end -->\nafter\n"


def test_a_table_takes_the_place_of_the_one_between_its_markers():
    assert between_markers(PAGE, "new\n", "t") == PAGE.replace("old", "new")
    added = between_markers("# A page\n", "new\n", "t")
    assert added == "# A page\n<!-- t: begin -->\nnew\n<!-- t: end -->\n"


@pytest.mark.parametrize(
    "page",
    [
        PAGE.replace("t: end -->", "t: end --> "),
        PAGE.replace("<!-- t: begin -->\n", ""),
        PAGE.replace("\n", "\r\n"),
    ],
    ids=["end not found", "no begin", "windows lines"],
)
def test_a_page_with_half_its_markers_is_left_alone(page):
    with pytest.raises(SystemExit, match="t: begin"):
        between_markers(page, "new\n", "t")
