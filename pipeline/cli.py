"""Verbs of this half, light to import: the heavy packages are imported when a verb runs."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline import cli_regions
from pipeline.cli_limits import ImageMemory, ImageTimeout
from pipeline.cli_status import status
from pipeline.cli_verify import verify
from pipeline.limits import GIBIBYTES, limits_of
from proposals.cli_panels import LOOK, MINE
from proposals.errors import AlignDetError
from proposals.extras import help_epilog, require_extra


class ModeName(StrEnum):
    """Presets of selective search, as the command line spells them."""

    single = "single"
    fast = "fast"
    quality = "quality"


class EngineName(StrEnum):
    """Engines of selective search, as the command line spells them."""

    fast = "fast"
    opencv = "opencv"


class SourceKind(StrEnum):
    """Kinds of sources, as the command line spells them."""

    folder = "folder"
    list = "list"
    coco = "coco"
    webdataset = "webdataset"
    parquet = "parquet"
    arrow = "arrow"


class ImagesMode(StrEnum):
    """What becomes of the images, as the command line spells it."""

    embed = "embed"
    reference = "reference"


class RankName(StrEnum):
    """Orders of boxes, as the command line spells them."""

    agreement = "agreement"
    opencv = "opencv"


def register(app: typer.Typer) -> None:
    """Add this half's verbs to the one command."""
    app.command(epilog=help_epilog("mine"), rich_help_panel=MINE)(mine)
    app.command(rich_help_panel=MINE)(status)
    app.command(rich_help_panel=LOOK)(verify)
    cli_regions.register(app)


_Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder, list, COCO json, tars or tables of images: a path, or a URL such as s3://.",
    ),
]
_Out = Annotated[
    str, typer.Argument(metavar="OUT", help="Dataset folder to write, or to resume: a path or a URL.")
]
_Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes, one core each. Default: every core.")
]
_MaxSide = Annotated[
    int, typer.Option(min=16, max=8192, help="Longer side, in px, at which the search runs.")
]
_Mode = Annotated[
    ModeName, typer.Option(help="quality: three to four times the boxes of fast, in three times the time.")
]
_FilterName = Annotated[
    str,
    typer.Option(
        "--filter",
        help="Boxes that are kept, by aspect ratio, size in tenths of the image's and NMS: here 1/3..3, 0.0..0.8, IoU "
        "0.5. none keeps all.",
    ),
]
_Rank = Annotated[
    RankName,
    typer.Option(
        help="Order of boxes, in which NMS runs: by how many others agree, or OpenCV's, close to random."
    ),
]
_ImagesPerShard = Annotated[int, typer.Option(min=1, max=1_000_000, help="Images in one tar.")]
_MaxPixels = Annotated[
    int, typer.Option(min=1, max=178_956_970, help="Images of more pixels are rejected, undecoded.")
]
_Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seeds the order of boxes.")]
_Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on. Default: $RAY_ADDRESS, or a private one on this machine."),
]
_Engine = Annotated[
    EngineName, typer.Option(help="Of the selective search: both give the same boxes, opencv 15x slower.")
]
_Images = Annotated[
    ImagesMode,
    typer.Option(help="embed: image files become part of OUT; reference: they stay in SOURCE, boxes only."),
]
_SourceKind = Annotated[
    SourceKind | None, typer.Option(help="What SOURCE is. Default: by its suffix, or what lies in it.")
]
_Glob = Annotated[
    str | None,
    typer.Option(help="In folders and tars: only images whose path matches, as `*/left/*.png`."),
]
_ImageColumn = Annotated[str | None, typer.Option(help="Of a Parquet or Arrow source.")]
_ImageRoot = Annotated[
    str | None,
    typer.Option(help="Where relative names in a list or COCO json start. Default: its own folder."),
]
_RetryRejected = Annotated[
    bool,
    typer.Option("--retry-rejected", help="Only try the rejected images of a finished OUT again."),
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def mine(
    source: _Source,
    out: _Out,
    workers: _Workers = None,
    max_side: _MaxSide = 512,
    mode: _Mode = ModeName.fast,
    filter_name: _FilterName = "ratio3size0008@0.5",
    rank: _Rank = RankName.agreement,
    images_per_shard: _ImagesPerShard = 64,
    seed: _Seed = 0,
    max_pixels: _MaxPixels = 89_478_485,
    address: _Address = None,
    engine: _Engine = EngineName.fast,
    image_timeout: ImageTimeout = None,
    image_memory: ImageMemory = GIBIBYTES,
    images: _Images = ImagesMode.embed,
    source_kind: _SourceKind = None,
    glob: _Glob = None,
    image_column: _ImageColumn = None,
    image_root: _ImageRoot = None,
    retry_rejected: _RetryRejected = False,
    quiet: _Quiet = False,
) -> None:
    """Mine object proposals from unlabeled images.

    Every image gets class-agnostic boxes by selective search. OUT becomes a dataset of plain WebDataset tars and
    Parquet tables. Same images and options give the same bytes, whatever the number of workers; stop it at any
    time and run the same command again to resume. Broken images are listed in rejected.parquet and stop nothing.
    With more images in SOURCE since, the same command adds them in new shards and leaves the old ones as they are.

    Example: `aligndet mine photos/ mined/ --workers 8`, then `aligndet show mined/ --out sheet.png`.
    """
    require_extra("mine", "mine")
    from rich.console import Console

    from pipeline.job import JobOptions, run_job
    from pipeline.progress import LiveProgress, tell_end
    from pipeline.sources import open_source
    from proposals.recipe import Recipe

    recipe = Recipe(
        mode=mode.value,
        max_side=max_side,
        filter=filter_name,
        rank=rank.value,
        seed=seed,
        max_pixels=max_pixels,
    )
    console, start, place = Console(), time.monotonic(), _place(out)
    with LiveProgress(console, quiet) as progress:
        limits = limits_of(recipe, engine.value, image_timeout, image_memory)
        embed = images is ImagesMode.embed
        options = JobOptions(images_per_shard, workers, address, engine.value, limits, retry_rejected, embed)
        opened = open_source(
            source,
            source_kind.value if source_kind else None,
            glob=glob,
            column=image_column,
            image_root=image_root,
            out=place,
        )
        outcome = run_job(opened, place, recipe, options, progress)
    if not quiet:
        tell_end(console, outcome, out, time.monotonic() - start, retried=retry_rejected)


def _place(out: str) -> Path:
    from proposals.paths import as_path, scheme_of

    place = as_path(out)
    if scheme_of(str(place)) == "memory":
        raise AlignDetError(
            f"{out} is of this process alone, and images are mined by others. Name another place."
        )
    return place
