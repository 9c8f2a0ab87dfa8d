"""`aligndet verify`: floor 1 checks, this half mines damaged shards again. Needs no Ray."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli_limits import ImageMemory, ImageTimeout
from pipeline.limits import GIBIBYTES
from proposals.errors import AlignDetError
from proposals.terminal import harmless

if TYPE_CHECKING:
    from proposals.dataset.verify import Report

_SHOWN = 200


def verify(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Folder or URL that `aligndet mine` wrote.")
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Read the tars too: every byte, every member, every image header.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Mine damaged shards again, from the folders --images. Implies --deep."
        ),
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder the images came from; give it again for each folder of a merged dataset."),
    ] = None,
    image_timeout: ImageTimeout = None,
    image_memory: ImageMemory = GIBIBYTES,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that check shards.")] = 1,
) -> None:
    """Check that a dataset is intact and keeps the promises of its format; exit 1 when it does not.

    Without --deep everything but the content of the tars is checked: it reads about 2 % of the bytes. With it,
    every bit of every file is covered, at about the speed of sha256.

    --repair mines exactly the damaged shards again and replaces them only when the bytes come out as they were
    committed; dataset.json, plan.parquet and rejected.parquet are rebuilt from the rest. Give it the --image-timeout
    and --image-memory that the dataset was mined with.

    Example: `aligndet verify mined/ --deep`, `aligndet verify mined/ --repair --images photos/`
    """
    from proposals.dataset.verify import verify_dataset

    if not repair and (image_timeout is not None or image_memory != GIBIBYTES):
        raise AlignDetError(
            "--image-timeout and --image-memory are of --repair, which mines images again: add it"
        )
    if repair:
        from pipeline.repair import repair_dataset

        report = repair_dataset(
            dataset,
            images or [],
            workers,
            on_repair=lambda file: typer.echo(f"repaired: {_line(file)}", err=as_json),
            seconds=image_timeout,
            gibibytes=image_memory,
        )
    else:
        report = verify_dataset(dataset, deep=deep, workers=workers)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(AlignDetError.exit_code)


def _line(text: str) -> str:
    """``text`` with names of strangers in it, on one line of a terminal."""
    return harmless(text).replace("\n", "\\n")


def _print(report: "Report") -> None:
    for path in report.unfinished[:_SHOWN]:
        typer.echo(f"note: {_line(path)} is of a run that was stopped, or still runs; readers ignore it")
    if not report.listed:
        typer.echo(
            "note: its server does not list folders; files that dataset.json does not name were not looked for"
        )
    for problem in report.problems[:_SHOWN]:
        typer.echo(_line(f"{problem.file}: {problem.what}"))
    if len(report.problems) > _SHOWN:
        typer.echo(f"... and {len(report.problems) - _SHOWN} more problems: --json lists all")
    content = f"{report.images:,} images, {report.proposals:,} boxes in {report.shards:,} shards"
    if not report.problems:
        level = "every byte" if report.deep else "everything but the content of the tars (--deep reads it)"
        typer.echo(f"{report.dataset} is clean: {content}; checked {level}")
        return
    shards = ", ".join(report.damaged_shards) or "none"
    typer.secho(f"{report.dataset} is damaged: {len(report.problems)} problems, shards: {shards}", fg="red")
