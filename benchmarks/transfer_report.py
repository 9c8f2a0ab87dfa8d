"""The table and the learning curves of what `benchmarks/transfer.py run` left in its work folder."""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from line_chart import line_chart

NAMES = {
    "backbone": "backbone only",
    "box": "+ box-domain",
    "keep": "+ box-domain, predictors kept",
    "no-class-branch": "+ box-domain, class branch left out",
}
# Of one pretraining: what an arm changes against `box`.
CHANGES = {"keep": "predictors kept", "no-class-branch": "class branch left out"}
# Options of a run that all arms share.
BUDGET = ("epochs", "batch_size", "image_size", "weight_decay")
# Detector, schedule, per cent of the labels, source of the weights.
Key = tuple[str, str, int, str]


def report(args: argparse.Namespace) -> None:
    """The table of everything that was run; what is missing, unfinished or has failed is named."""
    found = [run for source in args.results for run in read_runs(source)]
    runs = [run for run in found if "failed" not in run]
    precision = precision_of(runs)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text("[\n" + ",\n".join(json.dumps(run) for run in found) + "\n]\n")
    finals = by_cell([run for run in runs if run.get("stage") != "tune"])
    lines = ["| detector | schedule | labels | pretraining | lr | AP | AP50 | AP75 | gain | p (paired) | seeds |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    seeds = max((len(runs) for arms in finals.values() for runs in arms.values()), default=0)
    for key, arms in finals.items():
        own = (key[0], key[1], key[2], key[0])
        baseline = finals.get(own, {}).get("backbone", {})
        lines += [table_row(key, arm, runs, baseline, seeds) for arm, runs in arms.items()]
    lines += [f"\nComputed in {precision}."] if precision else []
    failures = [f"`{run['failed']}` (exit {run['exit']})" for run in found if "failed" in run]
    lines += ["", f"Failed, and with it what needs it: {'; '.join(failures)}."] if failures else []
    lines += changes(finals) + rates_tried(runs)
    lines += ["", "AP while fine-tuning (mean over seeds):", "", *learning_curves(finals)]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        page = args.out.read_text() if args.out.exists() else ""
        args.out.write_text(between_markers(page, text, args.section))
    if args.svg is not None:
        args.svg.write_text(chart(finals))


def read_runs(source: Path) -> list[dict[str, Any]]:
    """Every reported fine-tuning of a work folder, or of a file that ``--json`` wrote: labels, rate, figures.

    Those that a rate was chosen by come after the others, with the stage `tune`.
    """
    if source.is_file():
        return json.loads(source.read_text())
    runs = []
    folder = source / "finetune"
    for path in [*sorted(folder.glob("final+*/labels.json")), *sorted(folder.glob("tune+*/labels.json"))]:
        # The figures of a run that goes on are those of its last evaluation, not of its end.
        done = (path.parent / "finished").exists()
        results = (
            json.loads((path.parent / "results.json").read_text()) if done else {"last": {}, "epochs": []}
        )
        if weights := results.get("run", {}).get("weights"):
            weights["file"] = "/".join(Path(weights["file"]).parts[-2:])
        runs.append({**json.loads(path.read_text()), **results})
    runs += [
        json.loads(path.read_text())
        for path in sorted([*source.glob("*/*/failed"), *source.glob("pretrain/*/*.failed")])
    ]
    if not runs:
        sys.exit(f"{source}: no fine-tuning in it; it should be the --work-dir of `transfer.py run`")
    return runs


def by_cell(runs: list[dict[str, Any]]) -> dict[Key, dict[str, dict[int, dict[str, Any]]]]:
    """The runs by what a row of the table is, arm and seed. Ends the process where a mean would mix what is unlike."""
    finals: dict[Key, dict[str, dict[int, dict[str, Any]]]] = {}
    for run in runs:
        key = (run["detector"], run["schedule"], run["fraction"], run["source"])
        cell = finals.setdefault(key, {}).setdefault(run["arm"], {})
        name = f"{run['detector']}, {run['schedule']}, {run['fraction']} %, {run['source']}, {run['arm']}"
        if run["seed"] in cell:
            sys.exit(f"two runs of {name}, seed {run['seed']}: give each study a report of its own")
        if any(other["lr"] != run["lr"] for other in cell.values()):
            sys.exit(f"the seeds of {name} have different learning rates: they are of different studies")
        if any(
            backbone_of(other) != backbone_of(run)
            for other in cell.values()
            if "run" in other and "run" in run
        ):
            sys.exit(f"the seeds of {name} have different backbones: they are of different studies")
        cell[run["seed"]] = run
    require_one_budget(runs)
    return finals


def require_one_budget(runs: list[dict[str, Any]]) -> None:
    """End the process where the arms of one cell learned for other times or sizes, or from or on other pictures."""
    first: dict[tuple[Any, ...], Any] = {}
    for run in runs:
        for what, value in budget_of(run).items():
            if first.setdefault((run["detector"], run["schedule"], run["fraction"], what), value) != value:
                sys.exit(
                    f"the runs of {run['detector']}, {run['schedule']}, {run['fraction']} % differ in {what}: they are "
                    "of different studies, give each a report of its own"
                )


def budget_of(run: dict[str, Any]) -> dict[str, Any]:
    """What the arms of a detector, schedule and share of the labels have in common, by name."""
    told = run.get("run", {})
    common = {name: told["options"][name] for name in BUDGET if name in told.get("options", {})}
    files = {"what they are measured on": "val", f"the pictures of seed {run['seed']}": "train"}
    return common | {what: told[file]["sha256"] for what, file in files.items() if file in told}


def backbone_of(run: dict[str, Any]) -> dict[str, str]:
    """The file that the backbone began from where it was not the detector's own, name and digest."""
    given: dict[str, str] = run.get("run", {}).get("backbone_weights") or {}
    return given


def precision_of(runs: list[dict[str, Any]]) -> str | None:
    """What the runs computed in, None when none has ended. Ends the process when one table would mix two."""
    amp = {run["run"]["options"]["amp"] for run in runs if "run" in run}
    if len(amp) > 1:
        sys.exit(
            "some of these runs computed in bfloat16 (--amp), others in float32: give each a report of its own"
        )
    return {True: "bfloat16", False: "float32"}[amp.pop()] if amp else None


def between_markers(page: str, table: str, section: str) -> str:
    """``page`` with the table between the two markers of ``section``; without markers, with both at its end.

    Ends the process where only one of them is there: what to replace cannot be told.
    """
    begin, end = f"<!-- {section}: begin -->\n", f"<!-- {section}: end -->\n"
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if bool(begun) != bool(ended) or (not begun and f"<!-- {section}: " in page):
        sys.exit(f"the page needs a line {begin.strip()!r} and, below, a line {end.strip()!r}, or neither")
    return f"{before}{begin}{table}{end}{after}"


def chart(finals: dict[Key, dict[str, dict[int, dict[str, Any]]]]) -> str:
    """AP against the epoch of fine-tuning, a line for each arm, as SVG; arms of one schedule share a colour."""
    lines, families = {}, {}
    for (detector, schedule, fraction, source), arms in finals.items():
        for arm, runs in arms.items():
            setting = "" if (schedule, fraction) == ("short", 100) else f" {schedule} {fraction} %"
            short = detector.removesuffix("_lite0").removesuffix("_160px")
            name = f"{short}{setting}, {source if source != detector else NAMES[arm]}"
            families[name] = f"{detector}{setting}"
            lines[name] = [(0, 0.0), *sorted(mean_by_epoch(runs).items())]
    top = 5.0 * (1 + max((ap for points in lines.values() for _, ap in points), default=0.0) // 5)
    return line_chart(lines, x_label="epoch of fine-tuning", y_label="AP", top=top, families=families)


def table_row(
    key: Key, arm: str, runs: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]], seeds: int
) -> str:
    """One arm's figures over its seeds, of ``seeds`` that the study has, and its gain over ``baseline``."""
    detector, schedule, fraction, source = key
    name = NAMES[arm]
    if source != detector:
        name += f" ({source.removeprefix(detector + '-')})"
    if file := next((given["file"] for run in runs.values() if (given := backbone_of(run))), None):
        name += f" ({file})"
    figures = [spread([run["last"][figure] for run in runs.values() if figure in run["last"]])
               for figure in ("AP", "AP50", "AP75")]  # fmt: skip
    gain, p = paired(runs, baseline) if arm != "backbone" else ("", "")
    lr = next(iter(runs.values()))["lr"]
    done = sum("AP" in run["last"] for run in runs.values())
    cells = [
        detector,
        schedule,
        f"{fraction} %",
        name,
        f"{lr:g}",
        *figures,
        gain,
        p,
        f"{done} of {seeds}",
    ]
    return f"| {' | '.join(cells)} |"


def changes(finals: dict[Key, dict[str, dict[int, dict[str, Any]]]]) -> list[str]:
    """What each change is worth, against box-domain pretraining as it is; nothing without such a run."""
    rows = []
    for (detector, schedule, fraction, source), arms in finals.items():
        full = finals.get((detector, schedule, fraction, detector), {}).get("box", {})
        changed = source.removeprefix(f"{detector}-").replace("-", " ")
        own = {change: arms.get(arm, {}) for arm, change in CHANGES.items()}
        of_it = own if source == detector else {changed: arms["box"]}
        for change, runs in of_it.items():
            gain, p = paired(runs, full)
            if gain:
                seeds = len(seeds_of_both(runs, full))
                rows.append(f"| {detector} | {schedule} | {fraction} % | {change} | {gain} | {p} | {seeds} |")
    head = ["", "Each change against box-domain pretraining as it is:", "",
            "| detector | schedule | labels | changed | AP | p (paired) | seeds |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    return head + rows if rows else []


def rates_tried(runs: list[dict[str, Any]]) -> list[str]:
    """AP on the held-out part of the training pictures at each rate that was tried, the chosen one bold."""
    tried: dict[tuple[str, str, str], dict[float, float]] = {}
    tunings = (run for run in runs if run.get("stage") == "tune" and run["source"] == run["detector"])
    for run in (run for run in tunings if "AP" in run["last"]):
        arm = (run["detector"], run["schedule"], run["arm"])
        tried.setdefault(arm, {})[run["rate"]] = run["last"]["AP"]
    rates = sorted({rate for found in tried.values() for rate in found})
    rows = []
    for (detector, schedule, arm), found in tried.items():
        shown = [f"{found[rate]:.1f}" if rate in found else "" for rate in rates]
        best = rates.index(max(found, key=lambda rate: found[rate]))
        shown[best] = f"**{shown[best]}**"
        rows.append(f"| {detector} | {schedule} | {NAMES[arm]} | {' | '.join(shown)} |")
    head = ["", "AP on the fifth of the training pictures that each rate was chosen on, one run each:", "",
            f"| detector | schedule | pretraining | {' | '.join(f'lr {rate:g}' for rate in rates)} |",
            f"|---|---|---|{'---|' * len(rates)}"]  # fmt: skip
    return head + rows if rows else []


def spread(values: list[float]) -> str:
    """Mean and standard deviation, as the tables have them."""
    if not values:
        return "not done"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def paired(runs: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """Mean gain in AP over seeds that both have, and the p value of a two-sided paired t-test."""
    from scipy.stats import ttest_rel

    both = seeds_of_both(runs, baseline)
    if not both:
        return "", ""
    ours, theirs = ([group[seed]["last"]["AP"] for seed in both] for group in (runs, baseline))
    gain = f"{statistics.mean(ours) - statistics.mean(theirs):+.1f}"
    # The same gain in each pair, as rounded figures have it now and then, has no p.
    tells = len({round(one - other, 6) for one, other in zip(ours, theirs, strict=True)}) > 1
    return gain, f"{ttest_rel(ours, theirs).pvalue:.3f}" if tells else ""


def seeds_of_both(runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> list[int]:
    """The seeds that ended in both arms."""
    return [
        seed for seed in runs if "AP" in runs[seed]["last"] and "AP" in others.get(seed, {}).get("last", {})
    ]


def mean_by_epoch(runs: dict[int, dict[str, Any]]) -> dict[int, float]:
    """AP after each evaluated epoch, averaged over the seeds."""
    by_epoch: dict[int, list[float]] = {}
    for row in (row for run in runs.values() for row in run["epochs"]):
        by_epoch.setdefault(row["epoch"], []).append(row.get("AP", 0.0))
    return {epoch: statistics.mean(values) for epoch, values in by_epoch.items()}


def learning_curves(finals: dict[Key, dict[str, dict[int, dict[str, Any]]]]) -> list[str]:
    """The curves as a table."""
    lines = ["| detector | schedule | labels | arm | AP after epoch |", "|---|---|---|---|---|"]
    for (detector, schedule, fraction, source), arms in finals.items():
        for arm, runs in arms.items():
            curve = ", ".join(f"{epoch}: {ap:.1f}" for epoch, ap in sorted(mean_by_epoch(runs).items()))
            lines.append(
                f"| {source if arm != 'backbone' else detector} | {schedule} | {fraction} % | {arm} | {curve} |"
            )
    return lines
