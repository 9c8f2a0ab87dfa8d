"""Does pretraining learn? A few hundred iterations of several detectors, and what each says of its embeddings.

    python benchmarks/retrieval_curves.py OUT --work-dir W --iterations 300 --parallel 3
    python benchmarks/retrieval_curves.py OUT --work-dir W --small --batch-size 16 --workers 0 \\
        --detectors benchmarks/transfer_configs/cascade_rcnn_160px.py --cfg-options pretrain.momentum_start=0.95
    python benchmarks/retrieval_curves.py --render W/curves.json --svg docs/images/retrieval.svg

OUT is a proposal dataset. Every detector is one `aligndet pretrain` process: with the same W one that was ended goes on
from its last checkpoint, of every 50 steps, and a finished one is not run again. The figures are means over the first
and the last tenth of the run, beside what chance gives.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from line_chart import line_chart

DETECTORS = (
    "fcos_lite0",
    "retinanet_lite0",
    "faster_rcnn_lite0",
    "cascade_rcnn_lite0",
    "detr_lite0",
    "deformable_detr_lite0",
)
SMALL = (
    "--cfg-options",
    "pretrain.views.short_sides=(128,160)",
    "--cfg-options",
    "pretrain.views.long_side=224",
    "--cfg-options",
    "pretrain.sampled_boxes=1024",
)


def train(detector: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one detector to the end, or find it done; its figures per logged step."""
    source = "--config" if detector.endswith(".py") else "--detector"
    folder = arguments.work_dir / Path(detector).stem
    command = [sys.executable, "-m", "proposals", "pretrain", source, detector, "--data", arguments.data,
               "--work-dir", folder, "--iterations", arguments.iterations, "--batch-size", arguments.batch_size,
               "--workers", arguments.workers, "--log-interval", 1, "--checkpoint-interval", 50,
               *(SMALL if arguments.small else ()), *(["--amp"] if arguments.amp else [])]  # fmt: skip
    command += [part for option in arguments.cfg_options for part in ("--cfg-options", option)]
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        code = subprocess.run([str(part) for part in command], stdout=log, stderr=log, check=False).returncode
    curves = read_curves(folder)
    print(f"{detector}: exit {code}, {len(curves)} steps, {time.perf_counter() - start:.0f} s", flush=True)
    return {"detector": folder.name, "exit": code, "curves": curves}


def read_curves(folder: Path) -> list[dict[str, float]]:
    """The scalars of every logged step, in order; a resumed run has several files."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            steps[row["step"]] = row
    return [steps[step] for step in sorted(steps)]


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Means over the first and the last tenth of a run."""
    rows = [row for row in run["curves"] if "retrieval" in row]
    if not rows:
        return {"detector": run["detector"], "steps": len(run["curves"])}
    tenth = max(1, len(rows) // 10)

    def mean(part: list[dict[str, float]], name: str) -> float:
        return sum(row.get(name, float("nan")) for row in part) / len(part)

    first, last = rows[:tenth], rows[-tenth:]
    return {
        "detector": run["detector"],
        "steps": rows[-1]["step"],
        "retrieval_first": mean(first, "retrieval"),
        "retrieval_last": mean(last, "retrieval"),
        "chance": mean(last, "retrieval_chance"),
        "loss_first": mean(first, "loss"),
        "loss_last": mean(last, "loss"),
        "images_per_second": mean(last, "images_per_second"),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown, one row per detector."""
    lines = [
        "| detector | steps | retrieval: first tenth | last tenth | chance | loss: first | last | images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        row = summary(run)
        if "retrieval_first" not in row:
            lines.append(f"| {row['detector']} | {row['steps']} | nothing logged | | | | | |")
            continue
        lines.append(
            f"| {row['detector']} | {row['steps']} | {row['retrieval_first']:.3f} | {row['retrieval_last']:.3f} "
            f"| {row['chance']:.4f} | {row['loss_first']:.2f} | {row['loss_last']:.2f} "
            f"| {row['images_per_second']:.1f} |"
        )
    return "\n".join(lines)


def smooth(points: list[tuple[int, float]], window: int = 15) -> list[tuple[int, float]]:
    """A running mean of the values."""
    return [
        (step, sum(value for _, value in points[max(0, i - window + 1) : i + 1]) / min(i + 1, window))
        for i, (step, _) in enumerate(points)
    ]


def main() -> None:
    """Train, or render what was trained elsewhere."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="proposal dataset")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/retrieval"))
    parser.add_argument("--detectors", nargs="+", default=DETECTORS, help="names, or config files (.py)")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=1, help="detectors trained at the same time")
    parser.add_argument("--cfg-options", nargs="*", default=[], help="key=value changes to every config")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--small", action="store_true", help="views of 128 to 160 px, 1,024 boxes: for a CPU")
    parser.add_argument(
        "--render",
        type=Path,
        nargs="+",
        help="curves.json files: print their table, write --svg, train nothing",
    )
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    if arguments.render is None:
        if arguments.data is None:
            parser.error("name a proposal dataset")
        with ThreadPoolExecutor(arguments.parallel) as pool:
            runs = list(pool.map(lambda name: train(name, arguments), arguments.detectors))
        (arguments.work_dir / "curves.json").write_text(json.dumps(runs))
    else:
        runs = [run for path in arguments.render for run in json.loads(path.read_text())]
    print(table(runs))
    if arguments.svg is not None:
        lines = {
            run["detector"]: smooth(
                [(row["step"], row["retrieval"]) for row in run["curves"] if "retrieval" in row]
            )
            for run in runs
        }
        arguments.svg.write_text(line_chart(lines, x_label="iteration", y_label="retrieval", top=1.0))


if __name__ == "__main__":
    main()
