"""The trainer's verbs. Light to import: torch and mmdet come in when a verb runs."""

import ast
import json
from dataclasses import asdict
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aligndet_train import cli_backbone, cli_detectors, cli_finetune, cli_options
from proposals.cli_panels import TRAIN
from proposals.errors import AlignDetError
from proposals.extras import help_epilog, require_extra
from proposals.paths import as_path

if TYPE_CHECKING:
    from aligndet_train.export import KeyReport


class Library(StrEnum):
    """Libraries whose detectors can load exported weights, as the command line spells them."""

    mmdet = "mmdet"
    torchvision = "torchvision"
    transformers = "transformers"


def register(app: typer.Typer) -> None:
    """Add the trainer's verbs to the one command."""
    app.command(epilog=help_epilog("train"), rich_help_panel=TRAIN)(pretrain)
    app.command(epilog=help_epilog("train"), rich_help_panel=TRAIN)(export)
    cli_finetune.register(app)
    cli_detectors.register(app)
    cli_backbone.register(app)


_WorkDir = Annotated[Path, typer.Option(help="Where logs and last.pth go; a run found there is resumed.")]
_Detector = Annotated[
    str | None, typer.Option(help="A detector that ships with us: `aligndet detectors` lists them.")
]
_Config = Annotated[Path | None, typer.Option(help=f"Or {cli_options.CONFIG_HELP}.")]
_Iterations = Annotated[int | None, typer.Option(min=1, help="Steps to run instead of the recipe's epochs.")]
_BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a step on one GPU.")]
_Seed = Annotated[
    int | None, typer.Option(min=0, max=2**31 - 1, help="Seed of weights, order, views and sampling.")
]
_PictureInterval = Annotated[
    int, typer.Option(min=0, help="Steps between pictures of both views and their boxes; 0: none.")
]
_GatherNegatives = Annotated[
    bool, typer.Option("--gather-negatives", help="Boxes of all GPUs are negatives, not each GPU's own.")
]
_CfgOptions = Annotated[
    list[str] | None,
    typer.Option(help="key=value changes to the config, e.g. model.backbone.init_cfg=None. Repeat for more."),
]


def pretrain(
    data: cli_options.Data,
    work_dir: _WorkDir,
    detector: _Detector = None,
    config: _Config = None,
    backbone_weights: cli_options.BackboneWeights = None,
    iterations: _Iterations = None,
    batch_size: _BatchSize = None,
    seed: _Seed = None,
    amp: cli_options.Amp = False,
    workers: cli_options.Workers = 2,
    log_interval: cli_options.LogInterval = 10,
    checkpoint_interval: cli_options.CheckpointInterval = 500,
    picture_interval: _PictureInterval = 500,
    resume: cli_options.Resume = True,
    launcher: cli_options.Launcher = "none",
    damaged: cli_options.Damaged = "raise",
    cache: cli_options.Cache = None,
    cache_gb: cli_options.CacheGb = 50,
    gather_negatives: _GatherNegatives = False,
    cfg_options: _CfgOptions = None,
    no_python_config: cli_options.NoPythonConfig = False,
    quiet: cli_options.Quiet = False,
) -> None:
    """Pretrain neck and heads of a detector on mined proposals, its backbone frozen (AlignDet's box-domain stage).

    Every setting is a field of aligndet_train.config.PretrainConfig: --cfg-options pretrain.FIELD=VALUE.

    Example: `aligndet pretrain --detector fcos --data OUT --work-dir work_dirs/fcos --amp`
    """
    if (detector is None) == (config is None):
        raise AlignDetError("give either --detector NAME or --config FILE")
    require_extra("train", "pretrain")
    from aligndet_train import ops

    ops.install()
    from aligndet_train.config import load_run_config, shipped_config
    from aligndet_train.console import volume
    from aligndet_train.distributed import is_first
    from aligndet_train.plain_config import refuse_python
    from aligndet_train.run_options import RunOptions
    from aligndet_train.stream.cache import cache_for
    from aligndet_train.training import pretrain as run_pretrain

    refuse_python(config, no_python_config)
    path = config if config is not None else shipped_config(str(detector))
    overrides = {
        "iterations": iterations,
        "batch_size": batch_size,
        "seed": seed,
        "gather_negatives": gather_negatives or None,
    }
    changes = parse_options(cfg_options or [])
    if backbone_weights is not None:
        with volume("quiet" if quiet else "verbose"):
            begun = work_dir if resume else None
            changes = cli_backbone.plugged_options(path, changes, backbone_weights, begun)
    run = load_run_config(path, {k: v for k, v in overrides.items() if v is not None}, changes)
    options = RunOptions(
        amp=amp,
        workers=workers,
        log_interval=log_interval,
        checkpoint_interval=checkpoint_interval,
        picture_interval=picture_interval,
        resume=resume,
        launcher=launcher,
        damaged=damaged,
        cache=cache_for(as_path(data), cache, cache_gb),
    )
    with volume("quiet" if quiet else "verbose"):
        last = run_pretrain(run, data, work_dir, options)
    if not quiet and is_first(launcher):
        typer.echo(f"done: {last}\nnext: aligndet export {last} MODEL.pth")


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="WORK_DIR/last.pth of a pretraining run.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="MODEL.pth or MODEL.safetensors; for transformers a folder.")
    ],
    to: Annotated[Library, typer.Option(help="Whose detector loads the weights.")] = Library.mmdet,
    keep_predictors: Annotated[
        bool, typer.Option("--keep-predictors", help="Also export the final box predictors.")
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import-module",
            help="Python module, run, that registers a detector part of your own.",
        ),
    ] = None,
    as_json: cli_options.AsJson = False,
) -> None:
    """Write weights that the stock mmdet config loads, and say what became of every key.

    torchvision: fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn, fcos_resnet50_fpn. transformers:
    DetrForObjectDetection. A checkpoint runs no code: one that holds pickled objects, or names classes that mmdet does
    not register, is refused.

    Example: `aligndet export work_dirs/fcos/last.pth fcos_pretrained.pth`
    """
    require_extra("train", "export")
    from aligndet_train import ops

    ops.install()
    from aligndet_train.export import export as run_export
    from aligndet_train.export_elsewhere import LIBRARIES, export_elsewhere
    from proposals.outputs import require_outside_datasets

    require_outside_datasets(out)
    _require_other_file(checkpoint, out)
    for module in modules or []:
        _import(module)
    differences: list[str] = []
    if to is Library.mmdet:
        report = run_export(checkpoint, out, keep_predictors=keep_predictors)
    else:
        report, differences = export_elsewhere(
            checkpoint, out, LIBRARIES[to], keep_predictors=keep_predictors
        )
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(report), "differences": differences}, indent=1))
    else:
        _print_report(report, differences, to, out)
    if not report.beyond_backbone:
        raise AlignDetError(
            f"nothing but the backbone of {checkpoint} fits its stock detector: it is of another version of mmdet, or "
            "of a detector of another --to"
        )
    if not (keep_predictors or as_json):
        typer.echo(
            "the final box predictors are not in it; --keep-predictors keeps them (docs/results.md: who gains)"
        )


def _require_other_file(checkpoint: Path, out: Path) -> None:
    """Raise AlignDetError when ``out`` is a checkpoint that a run, pretraining or fine-tuning, goes on from."""
    from aligndet_train.checkpoint import LAST, PREVIOUS

    beside = [out.with_name(name) for name in (LAST, PREVIOUS)]
    if (out.parent / "last_checkpoint").is_file():
        beside += out.parent.glob("epoch_*.pth")
    for kept in (checkpoint, checkpoint.with_name(LAST), checkpoint.with_name(PREVIOUS), *beside):
        if out.exists() and kept.exists() and out.samefile(kept):
            raise AlignDetError(
                f"{out} is what the run in {kept.parent} goes on from, and the export would take its place: choose "
                "another name, such as MODEL.pth"
            )


def _import(module: str) -> None:
    try:
        import_module(module)
    except Exception as error:  # the user's own code
        raise AlignDetError(
            f"--import-module {module}: {type(error).__name__}: {error}. Is it on PYTHONPATH?"
        ) from error


def _print_report(report: "KeyReport", differences: list[str], to: Library, out: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(report.table())
    if report.left_at_init:
        console.print("left at init: " + ", ".join(report.left_at_init))
    if report.unexpected:
        console.print("unexpected: " + ", ".join(report.unexpected))
    for sentence in differences:
        console.print(f"other than in {to.value}: {sentence}")
    console.print(f"wrote {out}")


_WORDS = {"true": True, "false": False, "none": None}


def parse_options(options: list[str]) -> dict[str, Any]:
    """``["a.b=1", "c=None", "d=text"]`` -> values as Python literals where they are, else text.

    Raises AlignDetError for an option without "=".
    """
    parsed = {}
    for option in options:
        key, separator, text = option.partition("=")
        if not separator or not key:
            raise AlignDetError(f"--cfg-options takes key=value, got {option!r}")
        try:
            parsed[key] = _WORDS[text.lower()] if text.lower() in _WORDS else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[key] = text
    return parsed
