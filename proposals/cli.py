"""The `aligndet` command: mounts each package's verbs, imports a half only when one of its verbs runs."""

import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated

import typer

from proposals import dataset_cli
from proposals.cli_convert import convert
from proposals.cli_quality import recall, report, stats
from proposals.errors import AlignDetError


def build_app() -> typer.Typer:
    """The whole command: every package that declares an ``aligndet.verbs`` entry point adds its verbs."""
    app = typer.Typer(
        name="aligndet",
        help="Mine object proposals from unlabeled images, then pretrain a detector on them.",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_root)
    for entry in sorted(entry_points(group="aligndet.verbs"), key=lambda e: e.name):
        entry.load()(app)
    return app


def register(app: typer.Typer) -> None:
    """Add floor 1's verbs (none of them needs Ray or torch)."""
    app.command()(show)
    app.command()(recall)
    app.command()(stats)
    app.command()(report)
    app.command()(convert)
    app.command()(warmup)
    dataset_cli.register(app)


def show(
    dataset: Annotated[
        Path, typer.Argument(metavar="OUT", help="Dataset folder that `aligndet mine` wrote.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, max=400, help="Images on the sheet.")] = 12,
    out: Annotated[Path, typer.Option(help="Picture to write; its suffix decides the format.")] = Path(
        "sheet.png"
    ),
    top: Annotated[int, typer.Option(min=0, help="Boxes drawn on each image, best first.")] = 10,
) -> None:
    """Draw a contact sheet: evenly spaced images of a dataset with their best boxes.

    Example: `aligndet show mined/ --n 12 --out sheet.png`
    """
    from proposals.dataset import open_dataset
    from proposals.outputs import require_outside_datasets
    from proposals.sheet import contact_sheet

    require_outside_datasets(out)
    opened = open_dataset(dataset)
    if not len(opened):
        raise AlignDetError(
            f"{dataset} holds no image: all of them were rejected, see {dataset / 'rejected.parquet'}."
        )
    sheet = contact_sheet(opened, n, top)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise AlignDetError(
            f"{out} cannot be written: {error}. Choose a name that ends in .png or .jpg."
        ) from error
    typer.echo(f"{min(n, len(opened))} of {len(opened)} images, {sheet.width} x {sheet.height} px: {out}")


def warmup() -> None:
    """Compile the search ahead of the first image: in a container image, on every node, before a job.

    Kernels go to $ALIGNDET_CACHE_DIR, else $NUMBA_CACHE_DIR, else your cache directory; once there, a process loads
    them in less than a second instead of compiling for half a minute. Running it again does no work.

    Example: `ALIGNDET_CACHE_DIR=/opt/aligndet aligndet warmup`
    """
    from proposals.selective_search.warmup import warm_up

    warmth = warm_up()
    if warmth.directory is None:
        raise AlignDetError(
            "no directory for compiled kernels can be written: every process will compile for itself. Set "
            "ALIGNDET_CACHE_DIR to one that can."
        )
    done = "compiled" if warmth.compiled else "already compiled, loaded"
    typer.echo(f"{done} in {warmth.seconds:.1f} s: {warmth.directory}")


def _root(
    version_wanted: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda value: _print_version(value),
            help="Print the version.",
        ),
    ] = False,
) -> None:
    pass


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aligndet {version('aligndet')}")
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    try:
        build_app()()
    except AlignDetError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
