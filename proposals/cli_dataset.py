"""Verbs on finished datasets, light to import."""

from pathlib import Path
from typing import Annotated

import typer

from proposals.cli_panels import CHANGE


def register(app: typer.Typer) -> None:
    """Add the verbs that make one dataset file, or one dataset, out of others."""
    app.command(rich_help_panel=CHANGE)(merge)
    app.command(rich_help_panel=CHANGE)(consolidate)


def consolidate(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder that `aligndet mine` wrote.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that write.")] = 1,
) -> None:
    """Write proposals.zarr into a dataset: all boxes in four arrays, for fast random access.

    It is committed by an entry in dataset.json; until then readers refuse it. Adding images drops it: run this again.

    Example: `aligndet consolidate mined/ --workers 8`
    """
    from proposals.dataset.consolidated import consolidate as write

    if write(dataset, workers):
        typer.echo(f"{dataset / 'proposals.zarr'} is written and committed")
    else:
        typer.echo(f"{dataset / 'proposals.zarr'} is there and intact: nothing to do")


def merge(
    datasets: Annotated[
        list[Path], typer.Argument(metavar="DATASET...", help="Datasets of one recipe, in the order wanted.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New dataset folder to write.")],
) -> None:
    """Join datasets of one recipe into a new one, without copying images on one filesystem (hard links).

    The inputs stay as they are. A name may be in only one of them; of images that are in two under different names
    it says how many.

    Example: `aligndet merge mined_a/ mined_b/ -o mined/`
    """
    from proposals.dataset.merge import merge_datasets
    from proposals.outputs import require_outside_datasets

    require_outside_datasets(out)
    totals = merge_datasets(datasets, out, lambda text: typer.echo(f"warning: {text}", err=True)).totals
    typer.echo(f"{out}: {totals.images:,} images, {totals.proposals:,} boxes from {len(datasets)} datasets")
