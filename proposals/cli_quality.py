"""The verb `recall`: how well a dataset's boxes cover ground truth."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from proposals.quality import Pairing, Quality


def recall(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder that `aligndet mine` wrote.")],
    gt: Annotated[Path, typer.Option(help="Ground truth: a COCO json, or a folder of VOC xml files.")],
    compare: Annotated[
        Path | None, typer.Option(help="Another dataset, scored on the same ground truth.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also list the ABO of every class.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure how many annotated objects the proposals find.

    Recall at IoU 0.50..0.95 and AR for the best k boxes of each image, the same numbers as pycocotools with
    useCats = 0; ABO is the best overlap of an object, averaged per class, MABO its mean over classes. Only images
    that both sides have are counted; the others are reported.

    Example: `aligndet recall mined/ --gt instances_val2017.json --compare mined_quality/`
    """
    from rich.console import Console

    from proposals.dataset import open_dataset
    from proposals.ground_truth import read_ground_truth
    from proposals.quality import measure_dataset

    truth = read_ground_truth(gt)
    paths = [dataset] if compare is None else [dataset, compare]
    scored = [(str(path), *measure_dataset(open_dataset(path), truth)) for path in paths]
    if as_json:
        content = [_as_json(name, quality, pairing) for name, quality, pairing in scored]
        typer.echo(json.dumps(content[0] if compare is None else {"datasets": content}, indent=1))
        return
    console = Console()
    for name, quality, pairing in scored:
        console.print(_recall_table(name, quality))
        _print_left_out(console, pairing)
    if compare is not None:
        console.print(_comparison(scored[0][1], scored[1][1]))
    if per_class:
        console.print(_class_table([quality for _, quality, _ in scored]))


def quality_json(quality: "Quality") -> dict[str, Any]:
    """The numbers of a `Quality` as JSON values; one that does not exist is null."""
    from proposals.quality import IOUS

    by_k = {_k(k): _number(value) for k, value in quality.average_recall.items()}
    table = {
        _k(k): {f"{iou:.2f}": _number(value) for iou, value in zip(IOUS, column, strict=True)}
        for k, column in zip(quality.average_recall, quality.recall.T.tolist(), strict=True)
    }
    return {
        "images": quality.images,
        "ground_truth_boxes": quality.truths,
        "proposals": quality.proposals,
        "AR": by_k,
        "AR@1000_by_area": {name: _number(value) for name, value in quality.area_recall.items()},
        "recall": table,
        "MABO": _number(quality.mabo),
        "ABO": quality.abo,
    }


def _as_json(name: str, quality: "Quality", pairing: "Pairing") -> dict[str, Any]:
    left_out = {
        "only_in_ground_truth": pairing.only_truth,
        "only_in_dataset": pairing.only_dataset,
        "other_size": pairing.resized,
    }
    return {"dataset": name, **quality_json(quality), "left_out": left_out}


def _recall_table(name: str, quality: "Quality") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from proposals.quality import IOUS

    boxes = quality.proposals / max(quality.images, 1)
    caption = (
        f"{quality.truths:,} objects in {quality.images:,} images, {boxes:.0f} boxes per image\n"
        f"MABO {_share(quality.mabo)} over {len(quality.abo)} classes; AR@1000 by object area: "
        + ", ".join(f"{area} {_share(value)}" for area, value in quality.area_recall.items())
    )
    title = f"{escape(name)}: recall in %, by IoU"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", padding=0)
    table.add_column("k", justify="right")
    table.add_column("AR", justify="right", style="bold")
    for iou in IOUS:
        table.add_column(f"{iou:.2f}"[1:], justify="right")
    for (k, average), row in zip(quality.average_recall.items(), quality.recall.T.tolist(), strict=True):
        table.add_row(_k(k), _share(average), *(_share(value) for value in row))
    return table


def _comparison(first: "Quality", second: "Quality") -> "Table":
    from rich.table import Table

    table = Table(
        "k",
        "AR 1st",
        "AR 2nd",
        "change",
        "R@.50 1st",
        "R@.50 2nd",
        "change",
        title="side by side, in %",
        title_justify="left",
    )
    pairs = zip(first.average_recall.items(), second.average_recall.values(), strict=True)
    for place, ((k, ours), theirs) in enumerate(pairs):
        half, other_half = float(first.recall[0, place]), float(second.recall[0, place])
        table.add_row(_k(k), *_change(ours, theirs), *_change(half, other_half))
    table.add_row("MABO", *_change(first.mabo, second.mabo), end_section=True)
    return table


def _class_table(qualities: "list[Quality]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", *("ABO" for _ in qualities), title_justify="left")
    names = sorted({name for quality in qualities for name in quality.abo})
    for name in names:
        table.add_row(escape(name), *(_share(quality.abo.get(name, math.nan)) for quality in qualities))
    return table


def _print_left_out(console: "Console", pairing: "Pairing") -> None:
    groups = {
        "only in the ground truth": pairing.only_truth,
        "only in the dataset": pairing.only_dataset,
        "of another size in the ground truth": pairing.resized,
    }
    for reason, names in groups.items():
        if names:
            examples = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            console.print(f"left out: {len(names):,} images {reason} ({examples})", markup=False)


def _k(k: int) -> str:
    from proposals.quality import ALL

    return "all" if k == ALL else str(k)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _change(ours: float, theirs: float) -> tuple[str, str, str]:
    return _share(ours), _share(theirs), f"{100 * (theirs - ours):+.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
