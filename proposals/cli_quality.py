"""The verbs that look at a dataset: `recall`, `stats`, `report`."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proposals.errors import AlignDetError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from proposals.quality import Pairing, Quality
    from proposals.report import Statistics


def recall(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Dataset folder or URL that `aligndet mine` wrote.")
    ],
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
    that the ground truth and the dataset have, with --compare both datasets, are counted; the others are reported.

    Example: `aligndet recall mined/ --gt instances_val2017.json --compare mined_quality/`
    """
    from rich.console import Console

    from proposals.dataset import open_dataset
    from proposals.ground_truth import read_objects
    from proposals.quality import measure_datasets

    truth = read_objects(gt)
    opened = [open_dataset(path) for path in (dataset, compare) if path is not None]
    found = measure_datasets(opened, truth)
    scored = [
        (str(one.root), quality, pairing) for one, (quality, pairing) in zip(opened, found, strict=True)
    ]
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


def stats(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Dataset folder or URL that `aligndet mine` wrote.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print what a dataset holds: totals, percentiles of its boxes, cost, rejections, recipe.

    Totals are exact; percentiles come from an even sample of at most 20,000 images.

    Example: `aligndet stats mined/`
    """
    from rich.console import Console

    from proposals.dataset import open_dataset
    from proposals.report import collect

    statistics = collect(open_dataset(dataset))
    if as_json:
        typer.echo(statistics.model_dump_json(indent=1))
        return
    Console().print(_stats_table(statistics))


def report(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Dataset folder or URL that `aligndet mine` wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    gt: Annotated[
        Path | None, typer.Option(help="Adds recall curves: a COCO json, or a folder of VOC xml files.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, max=60, help="Images in the gallery.")] = 24,
) -> None:
    """Write one HTML page about a dataset: figures, charts, and images with a slider for their boxes.

    The page needs no network and stays below 5 MB whatever the size of the dataset.

    Example: `aligndet report mined/ -o report.html --gt instances_val2017.json`
    """
    from proposals.dataset import open_dataset
    from proposals.dataset.files import write_atomically
    from proposals.ground_truth import read_objects
    from proposals.outputs import require_outside_datasets
    from proposals.quality import measure_dataset
    from proposals.report import collect, render

    require_outside_datasets(out)
    if gt is not None and out.exists() and out.samefile(gt):
        raise AlignDetError(f"{out} is the ground truth that is read. Choose another name.")
    opened = open_dataset(dataset)
    quality = None if gt is None else measure_dataset(opened, read_objects(gt))[0]
    page = render(opened, collect(opened), quality, pictures).encode("utf-8", "replace")
    try:
        if out.exists() and not out.is_file():  # a pipe
            out.write_bytes(page)
        else:
            write_atomically(out.resolve(), page)
    except OSError as error:
        raise AlignDetError(f"{out} cannot be written: {error.strerror}. Choose another name.") from error
    typer.echo(f"{len(opened):,} images, {len(page) / 1e6:.2f} MB: {out}")


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
        "not_in_the_other_dataset": pairing.uncompared,
    }
    return {"dataset": name, **quality_json(quality), "left_out": left_out}


def _stats_table(statistics: "Statistics") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(_printable(statistics.name)), show_header=False, title_justify="left")
    images = max(statistics.images, 1)
    table.add_row("images", f"{statistics.images:,} in {statistics.shards:,} shards")
    table.add_row("boxes", f"{statistics.proposals:,} ({statistics.proposals / images:.0f} per image)")
    table.add_row("size", f"{statistics.bytes / 1e6:,.1f} MB")
    for status, count in statistics.statuses.items():
        table.add_row(f"  {escape(_printable(status))}", f"{count:,} images")
    table.add_row("rejected", f"{statistics.rejected_images:,} images")
    for reason, count in statistics.rejected.items():
        table.add_row(f"  {escape(_printable(reason))}", f"{count:,} images")
    spreads = {
        "boxes per image": statistics.boxes_per_image,
        "relative size": statistics.relative_size,
        "aspect w/h": statistics.aspect,
    }
    for name, values in spreads.items():
        table.add_row(name, ", ".join(f"{key} {value:.3g}" for key, value in values.items()) or "-")
    if statistics.cost is not None:
        values = {"mean": statistics.cost.mean, **statistics.cost.percentiles}
        parts = ", ".join(f"{key} {1000 * value:.0f}" for key, value in values.items())
        table.add_row("core ms per image", f"{parts} (over shards)")
    table.add_row("recipe", escape(", ".join(f"{key} {value}" for key, value in statistics.recipe.items())))
    versions = (_printable(f"{key} {value}") for key, value in statistics.versions.items())
    table.add_row("versions", escape(", ".join(versions)))
    return table


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
    title = f"{escape(_printable(name))}: recall in %, by IoU"
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
        shares = (_share(quality.abo.get(name, math.nan)) for quality in qualities)
        table.add_row(escape(_printable(name)), *shares)
    return table


def _print_left_out(console: "Console", pairing: "Pairing") -> None:
    groups = {
        "only in the ground truth": pairing.only_truth,
        "only in the dataset": pairing.only_dataset,
        "of another size in the ground truth": pairing.resized,
        "that the other dataset cannot be scored on": pairing.uncompared,
    }
    for reason, names in groups.items():
        if names:
            examples = ", ".join(map(_printable, names[:3])) + (" ..." if len(names) > 3 else "")
            console.print(f"left out: {len(names):,} images {reason} ({examples})", markup=False)


def _printable(name: str) -> str:
    # A stranger's file name may hold a terminal's escape sequences, or half a character.
    return name if name.isprintable() else repr(name)


def _k(k: int) -> str:
    from proposals.quality import ALL

    return "all" if k == ALL else str(k)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _change(ours: float, theirs: float) -> tuple[str, str, str]:
    return _share(ours), _share(theirs), f"{100 * (theirs - ours):+.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
