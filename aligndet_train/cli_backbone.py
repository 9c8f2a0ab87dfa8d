"""The backbone's verbs: pretrain it without labels, and say what a weights file is. Light to import."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import typer

from aligndet_train import cli_options
from proposals.cli_panels import TRAIN
from proposals.errors import AlignDetError
from proposals.extras import help_epilog, require_extra
from proposals.paths import as_path


def register(app: typer.Typer) -> None:
    """Add `pretrain-backbone` and `backbone` to the one command."""
    app.command("pretrain-backbone", epilog=help_epilog("train"), rich_help_panel=TRAIN)(pretrain_backbone)
    group = typer.Typer(no_args_is_help=True, help="Weights of backbones: what a file is and what it fits.")
    group.command(epilog=help_epilog("train"))(inspect)
    app.add_typer(group, name="backbone", rich_help_panel=TRAIN)


# Settings of a backbone that name its weights, and one that goes with their names.
_WEIGHTS = ("model.backbone.init_cfg", "model.backbone.weights", "model.backbone.pretrained")
_NAMES = "model.backbone.convert_weights"
_WorkDir = Annotated[Path, typer.Option(help="Where logs, last.pth and backbone.pth go; resumed if found.")]
_Backbone = Annotated[
    str,
    typer.Option(
        help="resnet50, swin_tiny ..., timm:NAME, or whose backbone to take, with random weights: "
        f"{cli_options.CONFIG_HELP}."
    ),
]
_Knn = Annotated[
    Path | None,
    typer.Option(help="Labelled pictures to measure k-NN accuracy on: class folders, or a COCO json."),
]
_CfgOptions = Annotated[
    list[str] | None,
    typer.Option(help="key=value settings, e.g. lr=0.1 or views.size=96. Repeat for more."),
]


def pretrain_backbone(
    data: cli_options.Data,
    work_dir: _WorkDir,
    backbone: _Backbone = "resnet50",
    method: Annotated[str, typer.Option(help="simsiam, moco_v2 or simclr.")] = "simsiam",
    crops: Annotated[
        str, typer.Option(help="What views are drawn from: whole `images`, or single `proposals`.")
    ] = "images",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Length of the run [default: 100; moco_v2: 200].")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Steps to run instead of epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images a step on one GPU [default: 256].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Seed of weights, order and views.")
    ] = None,
    amp: cli_options.Amp = False,
    workers: cli_options.Workers = 2,
    log_interval: cli_options.LogInterval = 10,
    checkpoint_interval: cli_options.CheckpointInterval = 500,
    resume: cli_options.Resume = True,
    launcher: cli_options.Launcher = "none",
    damaged: cli_options.Damaged = "raise",
    cache: cli_options.Cache = None,
    cache_gb: cli_options.CacheGb = 50,
    knn: _Knn = None,
    knn_images: Annotated[Path | None, typer.Option(help="Folder of the COCO json's images.")] = None,
    knn_interval: Annotated[
        int | None, typer.Option(min=1, help="Steps between measurements [default: both ends only].")
    ] = None,
    cfg_options: _CfgOptions = None,
    no_python_config: cli_options.NoPythonConfig = False,
    quiet: cli_options.Quiet = False,
) -> None:
    """Pretrain a backbone on unlabeled images (AlignDet's image-domain stage: SimSiam, MoCo v2 or SimCLR).

    Every setting is a field of aligndet_train.image_domain.config.SimSiamConfig, MocoConfig or SimClrConfig:
    --cfg-options FIELD=VALUE.

    Example: `aligndet pretrain-backbone --backbone resnet50 --data OUT --work-dir B --amp`
    """
    require_extra("train", "pretrain-backbone")
    from aligndet_train.backbones.registry import find_backbone
    from aligndet_train.cli import parse_options
    from aligndet_train.console import volume
    from aligndet_train.distributed import is_first
    from aligndet_train.image_domain.config import image_domain_config
    from aligndet_train.image_domain.knn import read_labelled
    from aligndet_train.image_domain.training import pretrain_backbone as run
    from aligndet_train.plain_config import is_config, refuse_python
    from aligndet_train.run_options import RunOptions
    from aligndet_train.stream.cache import cache_for

    refuse_python(Path(backbone) if is_config(backbone) else None, no_python_config)
    named = {
        "crops": crops, "epochs": epochs, "iterations": iterations, "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in named.items() if value is not None}
    if knn is None and (knn_images is not None or knn_interval is not None):
        raise AlignDetError(
            "--knn-images and --knn-interval say how to measure: name the pictures with --knn"
        )
    config = image_domain_config(given | parse_options(cfg_options or []), method)
    labelled = None if knn is None else read_labelled(knn, knn_images, config.views.size)
    options = RunOptions(
        amp=amp,
        workers=workers,
        log_interval=log_interval,
        checkpoint_interval=checkpoint_interval,
        resume=resume,
        launcher=launcher,
        damaged=damaged,
        cache=cache_for(as_path(data), cache, cache_gb),
    )
    with volume("quiet" if quiet else "verbose"):
        out = run(find_backbone(backbone), config, data, work_dir, options, labelled, knn_interval)
    if not quiet and is_first(launcher):
        typer.echo(f"done: {out}\nnext: aligndet pretrain --backbone-weights {out} ...")


def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .pth, .pth.tar or .safetensors file.")
    ],
    as_json: cli_options.AsJson = False,
) -> None:
    """Say what a weights file is, what becomes of each of its keys, and which backbones and detectors it fits.

    Example: `aligndet backbone inspect moco_v2_800ep_pretrain.pth.tar`
    """
    require_extra("train", "backbone inspect")
    from rich.console import Console

    from aligndet_train.backbones.inspect import inspection, inspection_json

    if as_json:
        typer.echo(json.dumps(inspection_json(checkpoint), indent=1))
        return
    console = Console()
    for part in inspection(checkpoint):
        console.print(part)


def plugged_options(
    config: Path, options: dict[str, Any], weights: Path, begun: Path | None = None
) -> dict[str, Any]:
    """The user's ``options`` and those that put ``weights`` into the backbone of ``config``; says what it does.

    A user's setting goes before what the weights were trained with. begun: work folder of a run to go on with, whose
    checkpoint knows all of that when ``weights`` are gone. Raises AlignDetError when an option names other weights, or
    the file does not fill the backbone.
    """
    from aligndet_train.backbones.plug import kept_settings, plugged
    from aligndet_train.config import preprocessor_of, read_config

    options = _without_other_weights(options, weights)
    stock = read_config(config, options)
    if begun is not None and not weights.exists() and (settings := _settings_of_run(begun, weights)):
        typer.echo(f"backbone: {weights} is gone; {begun} has what it held")
        place, _ = preprocessor_of(stock, config)
        backbone, preprocessor = settings
        # Options of whole dictionaries first: the user's, which are dotted, reach inside.
        return {"model.backbone": backbone, place: preprocessor} | options
    changes, converted, fitted = plugged(weights, stock)
    typer.echo(
        f"backbone: {weights}, {converted.project}, {converted.family.name}: {len(fitted.loaded)} tensors loaded, "
        f"{len(fitted.left_at_init)} left at init, {len(fitted.unexpected)} unexpected, "
        f"{len(converted.left)} keys of the file are no part of it"
    )
    if (warning := kept_settings(converted, stock)) is not None:
        typer.echo(f"warning: {warning}")
    return _with_settings(options, changes)


def _settings_of_run(work_dir: Path, weights: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Backbone and data_preprocessor of the run in ``work_dir``; None where that did not begin from ``weights``."""
    from aligndet_train.checkpoint import LAST, load_checkpoint
    from aligndet_train.initial_weights import begins_from

    last = work_dir / LAST
    model = load_checkpoint(last)["identity"].get("stock_model") if last.is_file() else None
    if model is None or not begins_from(model["backbone"], weights):
        return None
    # Instead of what the config has, not merged with it.
    return {"_delete_": True, **model["backbone"]}, {"_delete_": True, **model["data_preprocessor"]}


def detector_options(config: Path, options: dict[str, Any], weights: Path) -> dict[str, Any]:
    """The user's ``options`` and those with which ``config``'s images are as the detector of ``weights`` had them.

    A user's setting goes before. Raises AlignDetError when ``weights`` is no weights file.
    """
    from aligndet_train.backbones.plug import detector_settings
    from aligndet_train.config import read_config

    return _with_settings(options, detector_settings(weights, read_config(config, options)))


def _with_settings(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``options``, and of ``changes`` what they do not say; tells which."""
    applied = {name: value for name, value in changes.items() if name == _NAMES or not _says(options, name)}
    for name, value in changes.items():
        if name not in applied:
            typer.echo(f"your --cfg-options go before {name}={value!r}, which the weights were trained with")
        elif name not in (*_WEIGHTS, _NAMES):
            typer.echo(f"as the weights were trained: --cfg-options {name}={value!r}")
    # Options of whole dictionaries first: a dotted one reaches inside.
    return deepcopy(options) | applied


def _without_other_weights(options: dict[str, Any], weights: Path) -> dict[str, Any]:
    """``options`` but for those that take the config's own weights away, which ``weights`` does anyway."""
    kept = {
        name: value for name, value in options.items() if not (name in _WEIGHTS and value in (None, "None"))
    }
    for name in _WEIGHTS:
        if _says(kept, name):
            raise AlignDetError(
                f"--backbone-weights {weights} and --cfg-options {name} both name the backbone's weights: drop one"
            )
    return kept


def _says(options: dict[str, Any], name: str) -> bool:
    """Whether ``options`` set ``name``, something inside it, or a dictionary around it that has it."""
    return any(
        f"{option}.".startswith(f"{name}.")
        or (name.startswith(f"{option}.") and _has(value, name.removeprefix(f"{option}.").split(".")))
        for option, value in options.items()
    )


def _has(value: Any, path: list[str]) -> bool:
    if not path or not isinstance(value, dict):
        return True
    return path[0] in value and _has(value[path[0]], path[1:])
