"""Does a fine-tuned detector fail to find boxes, or to name them? AP with the classes, and with all of them as one.

    python benchmarks/class_agnostic.py measure PACK W --out W/class_agnostic.json
    python benchmarks/class_agnostic.py report W/class_agnostic.json --page docs/studies/PAGE.md --section NAME

PACK and W are those of benchmarks/transfer.py. Every finished fine-tuning of W is tested on PACK's val.json with its
last checkpoint. Class-agnostic figures take the same boxes and scores, keep of those that overlap by 0.5 the best one,
whatever its class, and let it match any object. `report` writes the means over the seeds between the page's markers.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from torchvision.ops import batched_nms
from transfer_jobs import RECIPES
from transfer_report import NAMES, between_markers

from aligndet_train import ops
from aligndet_train.backbones.files import read_file
from aligndet_train.config import CONFIGS, read_config
from aligndet_train.finetuning.coco_ap import BoxEvaluation, difficult_boxes
from aligndet_train.finetuning.labels import Labels, matched, read_labels
from aligndet_train.finetuning.loading import load_into
from aligndet_train.finetuning.recipe import FinetuneOptions, evaluation_config
from proposals.dataset.files import file_sha256

# Rows of COCOeval.stats.
FIGURES = {"AP": 0, "AP50": 1, "AP75": 2, "AR100": 8}


def config_of(detector: str) -> Config:
    """The config that transfer.py fine-tuned."""
    option, value = RECIPES[detector].source(detector)
    return read_config(Path(value) if option == "--config" else CONFIGS / f"{value}.py", {})


def detect(config: Config, labels: Labels, checkpoint: Path, folder: Path, size: int) -> Path:
    """The COCO json of the boxes that ``checkpoint`` finds in the pictures of ``labels``, made once."""
    of_both = f"{file_sha256(checkpoint)[:8]}{file_sha256(labels.annotations)[:8]}"
    found = folder / f"{checkpoint.stem}.{of_both}.bbox.json"
    if found.is_file():
        return found
    options = FinetuneOptions(image_size=(size, size), workers=0)
    testing, _ = evaluation_config(config, labels, folder / "class_agnostic", options)
    testing.model.backbone.pop("weights", None)
    with TemporaryDirectory(dir=folder) as scratch, DefaultScope.overwrite_default_scope("mmdet"):
        testing.test_evaluator.outfile_prefix = str(Path(scratch) / "found")
        runner = Runner.from_cfg(testing)
        if left := load_into(runner.model, read_file(checkpoint).state).left_at_init:
            sys.exit(
                f"{checkpoint} does not fill its detector: {left[0]} and {len(left) - 1} more are missing"
            )
        runner.test()
        (Path(scratch) / "found.bbox.json").replace(found)
    return found


def figures(
    truth: COCO, found: list[dict[str, Any]], difficult: frozenset[int], *, with_classes: bool
) -> dict[str, float]:
    """COCO's figures in per cent; of a detector that found nothing, zeros."""
    if not found:
        return dict.fromkeys(FIGURES, 0.0)
    evaluation = BoxEvaluation(truth, truth.loadRes(found), difficult)
    evaluation.params.useCats = int(with_classes)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: round(100 * float(evaluation.stats[row]), 2) for name, row in FIGURES.items()}


def without_rivals(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The boxes that no better one of their image overlaps: a detector may say several classes of one box."""
    boxes = torch.tensor([box["bbox"] for box in found], dtype=torch.float32).reshape(-1, 4)
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    scores = torch.tensor([box["score"] for box in found])
    # By number: ids may be words, or so large that a box beside them is lost in float32.
    numbers = {image: number for number, image in enumerate(dict.fromkeys(box["image_id"] for box in found))}
    images = torch.tensor([numbers[box["image_id"]] for box in found], dtype=torch.int64)
    return [found[row] for row in batched_nms(corners, scores, images, 0.5).tolist()]


def measured(run: Path, labels: Labels) -> dict[str, Any]:
    """One fine-tuning's labels and both kinds of figures."""
    description = json.loads((run / "labels.json").read_text())
    record = json.loads((run / "run.json").read_text())
    size = record["options"]["image_size"][0]
    checkpoint = run / Path((run / "last_checkpoint").read_text().strip()).name
    config = config_of(description["detector"])
    # As it was fine-tuned: normalisation and classes may be others than the recipe's.
    config.model = read_config(run / f"{record['config']}.py", {}).model
    labels = matched(labels, tuple(record["classes"]), run / "labels")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(labels.annotations))
        difficult = difficult_boxes(truth)
        path = detect(config, labels, checkpoint, run, size)
        found = json.loads(path.read_text())
        named = figures(truth, found, difficult, with_classes=True)
        agnostic = figures(truth, without_rivals(found), difficult, with_classes=False)
    return {**description, "named": named, "class_agnostic": agnostic}


def measure(arguments: argparse.Namespace) -> None:
    """Both kinds of figures of every finished fine-tuning, printed, and written where --out says."""
    ops.install()
    labels = read_labels(
        arguments.pack / "val.json", arguments.pack / "labelled", arguments.work_dir / "labels"
    )
    runs = sorted(path.parent for path in (arguments.work_dir / "finetune").glob("final+*/finished"))
    rows = []
    for run in (run for run in runs if (run / "labels.json").is_file()):
        rows.append(measured(run, labels))
        row = rows[-1]
        print(f"{row['detector']} {row['arm']} {row['schedule']} {row['fraction']} % seed {row['seed']}: "
              f"named {row['named']}, class-agnostic {row['class_agnostic']}", flush=True)  # fmt: skip
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds of each arm, one line for each, as Markdown."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("detector", "schedule", "fraction", "source", "arm"))
        groups.setdefault(key, []).append(row)
    columns = [(kind, figure) for kind in ("named", "class_agnostic") for figure in FIGURES]
    titles = [
        f"class-agnostic: {name}" if kind != "named" and name == "AP" else name for kind, name in columns
    ]
    lines = [
        f"| detector | schedule | labels | pretraining | {' | '.join(titles)} | seeds |",
        "|---" * 13 + "|",
    ]
    for (detector, schedule, fraction, source, arm), runs in groups.items():
        change = "" if source == detector else f" ({source.removeprefix(detector + '-')})"
        means = [f"{statistics.mean(run[kind][figure] for run in runs):.1f}" for kind, figure in columns]
        cells = [detector, schedule, f"{fraction} %", NAMES[arm] + change, *means, str(len(runs))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render(arguments: argparse.Namespace) -> None:
    """Print the table; between the page's markers, too, where there is a page."""
    text = table(json.loads(arguments.figures.read_text()))
    print(text)
    if arguments.page is not None:
        arguments.page.write_text(between_markers(arguments.page.read_text(), text, arguments.section))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="command", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("pack", type=Path)
    measuring.add_argument("work_dir", type=Path)
    measuring.add_argument("--out", type=Path, help="file for the figures")
    reporting = verbs.add_parser("report")
    reporting.add_argument("figures", type=Path, help="what `measure --out` wrote")
    reporting.add_argument("--page", type=Path, help="Markdown file that has the markers")
    reporting.add_argument("--section", default="class_agnostic", help="name in the markers")
    arguments = parser.parse_args()
    (measure if arguments.command == "measure" else render)(arguments)


if __name__ == "__main__":
    main()
