"""The verbs after pretraining: fine-tune, evaluate, and the subsets to do it on. Light to import."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aligndet_train import cli_options
from aligndet_train.cli_backbone import detector_options, plugged_options
from proposals.cli_panels import TRAIN
from proposals.errors import AlignDetError
from proposals.extras import help_epilog, require_extra
from proposals.terminal import harmless

if TYPE_CHECKING:
    from mmengine.config import Config

    from aligndet_train.finetuning.coco_ap import ClassFigures
    from aligndet_train.finetuning.run import FinetuneResult

ConfigOption = Annotated[Path | None, typer.Option(help=f"{cli_options.CONFIG_HELP.capitalize()}.")]
DetectorOption = Annotated[str | None, typer.Option(help="Or a detector that ships with us, e.g. fcos.")]
SizeOption = Annotated[
    str | None,
    typer.Option(help="LONGxSHORT in px that images are resized to, e.g. 1333x800. Default: the config's."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of new weights, order and augmentation.")]
CfgOptions = Annotated[
    list[str] | None, typer.Option(help="key=value changes to the config. Repeat for more.")
]

_LABEL_FORMS = "COCO json, Pascal VOC folder, or a list in its ImageSets/Main"


def register(app: typer.Typer) -> None:
    """Add `finetune`, `evaluate` and `split` to the one command."""
    app.command(epilog=help_epilog("train"), rich_help_panel=TRAIN)(finetune)
    app.command(epilog=help_epilog("train"), rich_help_panel=TRAIN)(evaluate)
    # What is left over is told how several shares are given.
    app.command(context_settings={"allow_extra_args": True}, rich_help_panel=TRAIN)(split)


def finetune(
    train: Annotated[Path, typer.Option(help=f"{_LABEL_FORMS}.")],
    work_dir: Annotated[
        Path, typer.Option(help="Where checkpoints and results.json go; a run there is resumed.")
    ],
    config: ConfigOption = None,
    detector: DetectorOption = None,
    weights: Annotated[
        Path | None, typer.Option(help="What `aligndet export` wrote. Without: the config's own start.")
    ] = None,
    backbone_weights: cli_options.BackboneWeights = None,
    val: Annotated[Path | None, typer.Option(help=f"To measure AP on: {_LABEL_FORMS}.")] = None,
    train_images: Annotated[Path | None, typer.Option(help="Folder of the training images.")] = None,
    val_images: Annotated[Path | None, typer.Option(help="Folder of the validation images.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length; the schedule moves with it.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step on one GPU.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate as it is, unscaled.")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Weight decay as it is.")] = None,
    image_size: SizeOption = None,
    seed: Seed = 0,
    amp: cli_options.Amp = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Weights in NHWC order: on a CPU often faster.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    eval_interval: Annotated[int, typer.Option(min=1, help="Epochs between evaluations.")] = 1,
    launcher: cli_options.Launcher = "none",
    cfg_options: CfgOptions = None,
    no_python_config: cli_options.NoPythonConfig = False,
    quiet: cli_options.Quiet = False,
    verbose: cli_options.Verbose = False,
) -> None:
    """Fine-tune a stock detector on labelled boxes, from pretrained weights or from its usual start.

    From pretrained weights the learning rate is 1.5 times and the weight decay half of the config's, as in the paper,
    the rate scaled to the batch size; the log says what came out. Figures after every evaluation are in results.json.

    Example: `aligndet finetune --detector fcos --weights MODEL.pth --train train.json --val val.json --work-dir F`
    """
    require_extra("train", "finetune")
    stock = _stock_config(
        "finetune", config, detector, cfg_options, no_python_config, weights, backbone_weights, quiet
    )
    from aligndet_train.console import volume
    from aligndet_train.distributed import is_first
    from aligndet_train.finetuning.labels import LABELS, read_labels
    from aligndet_train.finetuning.recipe import FinetuneOptions
    from aligndet_train.finetuning.run import finetune as run_finetune
    from aligndet_train.work_folder import alone_in

    options = FinetuneOptions(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        image_size=_size(image_size),
        seed=seed,
        amp=amp,
        workers=workers,
        eval_interval=eval_interval,
        launcher=launcher,
        channels_last=channels_last,
    )
    loudness = volume("verbose" if verbose else "quiet" if quiet else "normal")
    with alone_in(work_dir, launcher), loudness, _config_blamed():
        labels = read_labels(train, train_images, work_dir / LABELS)
        held_out = read_labels(val, val_images, work_dir / LABELS) if val is not None else None
        result = run_finetune(stock, labels, held_out, weights, work_dir, options, backbone_weights)
    if not quiet and is_first(launcher):
        _print_result(result)


def evaluate(
    val: Annotated[Path, typer.Option(help=f"{_LABEL_FORMS}.")],
    weights: Annotated[Path, typer.Option(help="A checkpoint of `aligndet finetune`.")],
    work_dir: Annotated[Path, typer.Option(help="Where results.json goes.")],
    config: ConfigOption = None,
    detector: DetectorOption = None,
    val_images: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    image_size: SizeOption = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    cfg_options: CfgOptions = None,
    no_python_config: cli_options.NoPythonConfig = False,
    as_json: cli_options.AsJson = False,
    verbose: cli_options.Verbose = False,
) -> None:
    """Measure COCO AP of a fine-tuned detector.

    Example: `aligndet evaluate --detector fcos --weights F/epoch_12.pth --val val.json --work-dir E`
    """
    require_extra("train", "evaluate")
    stock = _stock_config("evaluate", config, detector, cfg_options, no_python_config, weights, quiet=as_json)
    from aligndet_train.console import volume
    from aligndet_train.finetuning.evaluation import evaluate as run_evaluate
    from aligndet_train.finetuning.labels import LABELS, read_labels
    from aligndet_train.finetuning.recipe import FinetuneOptions
    from aligndet_train.work_folder import alone_in

    options = FinetuneOptions(image_size=_size(image_size), workers=workers)
    with alone_in(work_dir), volume("verbose" if verbose else "quiet"), _config_blamed():
        labels = read_labels(val, val_images, work_dir / LABELS)
        found = run_evaluate(stock, labels, weights, work_dir, options)
    if as_json:
        told = {"weights": str(weights), "annotations": str(val), **found.figures, "classes": found.classes}
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(_in_one_line(found.figures))
    if len(found.classes) > 1:
        _print_classes(found.classes)


def split(
    context: typer.Context,
    annotations: Annotated[
        Path, typer.Argument(metavar="ANNOTATIONS", help=f"The whole set: {_LABEL_FORMS}.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the subsets, COCO jsons.")],
    percent: Annotated[
        list[str] | None,
        typer.Option(help="Shares of the images, e.g. 1,5,10, which is the default. May be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Subsets of each size, seeded 0, 1, 2...")] = 5,
) -> None:
    """Write subsets of a labelled set, for semi-supervised comparisons. A smaller one lies in a larger of its seed.

    Example: `aligndet split train.json subsets/ --percent 1,5,10 --seeds 5`
    """
    if context.args:
        raise AlignDetError(
            f"{' '.join(context.args)}: give several shares as one word, --percent 1,5,10, or repeat the option"
        )
    from aligndet_train.finetuning.split import split as run_split
    from proposals.outputs import require_outside_datasets

    require_outside_datasets(out)
    for subset in run_split(annotations, out, _percents(percent or ["1,5,10"]), range(seeds)):
        lost = f", no box of {', '.join(subset.missing)}" if subset.missing else ""
        typer.echo(f"{subset.path}: {subset.images} images, {subset.boxes} boxes{lost}")


def _stock_config(
    verb: str,
    config: Path | None,
    detector: str | None,
    options: list[str] | None,
    no_python_config: bool,
    weights: Path | None = None,
    backbone_weights: Path | None = None,
    quiet: bool = False,
) -> "Config":
    """The config, and in it how the detector of ``weights``, or the backbone of the other file, saw its images."""
    if (detector is None) == (config is None):
        raise AlignDetError("give either --config FILE or --detector NAME")
    if weights is not None and backbone_weights is not None:
        raise AlignDetError(
            f"--weights {weights} and --backbone-weights {backbone_weights} both name the backbone's weights: drop one"
        )
    from aligndet_train import ops

    ops.install()
    from aligndet_train.cli import parse_options
    from aligndet_train.config import read_config, shipped_config
    from aligndet_train.console import PROGRESS_HOOK, volume
    from aligndet_train.plain_config import refuse_python
    from aligndet_train.unread_options import require_read

    refuse_python(config, no_python_config)
    path = config if config is not None else shipped_config(str(detector))
    changes = parse_options(options or [])
    require_read(changes, verb)
    with volume("quiet" if quiet else "verbose"):
        if weights is not None:
            changes = detector_options(path, changes, weights)
        if backbone_weights is not None:
            changes = plugged_options(path, changes, backbone_weights)
    stock = read_config(path, changes)
    stock.custom_hooks = [*(stock.get("custom_hooks") or []), {"type": PROGRESS_HOOK}]
    return stock


@contextmanager
def _config_blamed() -> Iterator[None]:
    """Turn what mmengine raises for a class that is not there, or does not take its settings, into an AlignDetError."""
    try:
        yield
    except (KeyError, TypeError) as error:
        what = str(error.args[0]) if error.args else ""
        if "is not in the" not in what and "__init__() " not in what:
            raise
        raise AlignDetError(
            f"the config cannot be built: {what.split('. Please')[0]}. Correct it, or the --cfg-options"
        ) from error


def _print_result(result: "FinetuneResult") -> None:
    if result.report is not None:
        typer.echo(
            f"weights: {len(result.report.loaded)} tensors loaded, {len(result.report.left_at_init)} new"
        )
    if result.figures:
        typer.echo(_in_one_line(result.figures))
        typer.echo(f"figures of every epoch: {result.results}")


def _in_one_line(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in figures.items())


def _print_classes(classes: "list[ClassFigures]") -> None:
    """A table of the classes; one of which the labels have no box has no AP."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("class", *(Column(name, justify="right") for name in ("boxes", "AP", "AP50")))
    for one in classes:
        figures = [f"{one[name]:.1f}" if one["boxes"] else "" for name in ("AP", "AP50")]
        table.add_row(escape(harmless(one["name"])), str(one["boxes"]), *figures)
    Console().print(table)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise AlignDetError(f"--image-size takes LONGxSHORT such as 1333x800, not {text!r}")
    longer, shorter = sorted((int(side) for side in sides), reverse=True)
    return longer, shorter


def _percents(texts: list[str]) -> list[float]:
    found = []
    for part in (part for text in texts for part in text.split(",")):
        try:
            found.append(float(part))
        except ValueError as error:
            raise AlignDetError(
                f"--percent takes numbers such as 5 or 1,5,10, and {part!r} is none: correct it"
            ) from error
    return found
