"""The verbs `regions` and `cluster`, light to import."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from proposals.cli_panels import CHANGE
from proposals.errors import AlignDetError
from proposals.extras import help_epilog, require_extra


class DeviceName(StrEnum):
    """Where backbones run, as the command line spells it."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def register(app: typer.Typer) -> None:
    """Add `regions` and `cluster` to the one command."""
    app.command(epilog=help_epilog("train"), rich_help_panel=CHANGE)(regions)
    app.command(epilog=help_epilog("cluster"), rich_help_panel=CHANGE)(cluster)


def regions(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder that `aligndet mine` wrote.")],
    backbone: Annotated[
        str,
        typer.Option(
            help="Whose backbone is used, frozen: a shipped detector, or a mmdet config, .py, whose code is run (use "
            "files you trust), or .json or .yaml, plain data."
        ),
    ],
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of the backbone: of pretrain-backbone, MoCo, DINO, torchvision ...; nodes need them at the "
            "same path."
        ),
    ] = None,
    short_side: Annotated[
        int, typer.Option(min=32, max=4096, help="Shorter side, in px, that images are resized to.")
    ] = 480,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray actors, one core or GPU each. Default: all there are.")
    ] = None,
    device: Annotated[DeviceName, typer.Option(help="auto takes GPUs where Ray has any.")] = DeviceName.auto,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to run on; its nodes need DATASET at the same path. Default: $RAY_ADDRESS, or a "
            "private one."
        ),
    ] = None,
    cfg_options: Annotated[
        list[str] | None,
        typer.Option(help="key=value changes to the config, e.g. model.backbone.frozen_stages=1."),
    ] = None,
    no_python_config: Annotated[
        bool, typer.Option("--no-python-config", help="Refuse a config in Python, whose code is run.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Write features of every box into DATASET/regions.zarr: RoIAlign on a frozen backbone's last map.

    Shard by shard: stop it at any time, and the same command goes on from there. After images were added it does the
    new shards only. `aligndet cluster` is what reads them.

    Example: `aligndet regions mined/ --backbone fcos_lite0`, then `aligndet cluster mined/`
    """
    require_extra("mine", "regions")
    require_extra("train", "regions")
    if no_python_config and backbone.endswith(".py"):
        raise AlignDetError(
            f"{backbone} is a Python config, whose code would be run, and --no-python-config refuses that. Name a "
            "shipped detector (`aligndet detectors`), or give the config as .json or .yaml"
        )
    from pipeline.regions import RegionOptions, extract_regions
    from proposals.paths import local_only

    dataset = local_only(dataset, "regions")
    options = RegionOptions(
        backbone,
        tuple(cfg_options or ()),
        short_side,
        workers,
        address,
        device.value,
        backbone_weights,
        quiet,
    )
    outcome = extract_regions(dataset, options, _say_nothing if quiet else _say_progress)
    if quiet:
        return
    typer.echo(
        f"{dataset}: features of {outcome.written} shards written, {outcome.found} were there, "
        f"{outcome.channels} values a box\nnext: aligndet cluster {dataset}"
    )


def cluster(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder with regions.zarr.")],
    k: Annotated[int, typer.Option("--k", min=1, max=65536, help="Number of clusters.")] = 256,
    pca: Annotated[int, typer.Option(min=1, help="Dimensions kept, at most those of the features.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same ids.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Picture of the clusters' nearest crops to write (.png or .jpg).")
    ] = None,
) -> None:
    """Give every box of DATASET a cluster id: PCA and k-means of its features, the classes of DETR's pretraining.

    Ids go to clusters.zarr, numbered by size from 1; clusters.json says what they are made of. Running it again
    replaces them. `aligndet pretrain` and `aligndet convert --to coco` find them there.

    Example: `aligndet cluster mined/ --k 256 --report clusters.jpg`
    """
    require_extra("cluster", "cluster")
    from pipeline.clusters import ClusterSettings, cluster_dataset, sizes_line
    from proposals.outputs import require_outside_datasets
    from proposals.paths import local_only

    dataset = local_only(dataset, "cluster")
    if report is not None:
        require_outside_datasets(report)
    clusters = cluster_dataset(dataset, ClusterSettings(k, pca, seed), typer.echo)
    typer.echo(f"{dataset}: {sizes_line(clusters)}")
    if report is not None:
        _write_sheet(dataset, report)


def _write_sheet(dataset: Path, out: Path) -> None:
    from proposals.cluster_sheet import cluster_sheet
    from proposals.dataset import open_dataset
    from proposals.dataset.clusters import read_clusters

    opened = open_dataset(dataset)
    clusters = read_clusters(dataset, opened.manifest)
    assert clusters is not None
    sheet = cluster_sheet(opened, clusters)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise AlignDetError(
            f"{out} cannot be written: {error}. Choose a name that ends in .png or .jpg."
        ) from error
    typer.echo(f"{sheet.width} x {sheet.height} px: {out}")


def _say_nothing(done: int, shards: int) -> None:
    pass


def _say_progress(done: int, shards: int) -> None:
    typer.echo(f"{done}/{shards} shards")
