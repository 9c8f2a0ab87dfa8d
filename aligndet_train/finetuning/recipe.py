"""From a stock mmdet config to one that fine-tunes on the user's own labels, with the paper's recipe.

Starting from pretrained neck and heads, the learning rate is 1.5 times and the weight decay half of the detector's
usual ones (AlignDet's fine-tuning). The rate is also scaled linearly from the batch size the config was written for
(see `base_batch`).
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from aligndet_train.detectors.class_names import class_name
from aligndet_train.finetuning.base_batch import base_batch
from aligndet_train.finetuning.classes import require_no_map_of_classes, set_classes
from aligndet_train.finetuning.coco_ap import METRIC
from aligndet_train.finetuning.labels import Labels, require_boxes
from aligndet_train.finetuning.resizing import ImageSize
from aligndet_train.finetuning.schedule import move_schedule, move_switches, scale_floor
from aligndet_train.optimizer import Bfloat16OptimWrapper
from proposals.errors import AlignDetError

PRETRAINED_LR_FACTOR = 1.5
PRETRAINED_WEIGHT_DECAY_FACTOR = 0.5
# pycocotools' own. With mmdet's (100, 300, 1000) AP50 would count 1000 boxes an image, and AP 100.
_MOST_BOXES = (1, 10, 100)
# Datasets of which an epoch has images more than once.
_REPEATING = ("RepeatDataset", "ClassBalancedDataset")
# What a config must have to train, and to be measured, beside its model.
_TO_TRAIN = (
    "train_dataloader.dataset",
    "train_dataloader.batch_size",
    "optim_wrapper.optimizer.lr",
    "train_cfg",
)
_TO_MEASURE = ("val_dataloader.dataset",)
_NUMBERS = ("optim_wrapper.optimizer.lr", "train_cfg.max_epochs", "train_dataloader.batch_size")
_MEASURED = "coco/bbox_mAP"
_OF_CHECKPOINTS = ("save_best", "rule", "greater_keys", "less_keys")
_BASES = [
    f"mmdet::_base_/{name}.py"
    for name in ("datasets/coco_detection", "schedules/schedule_1x", "default_runtime")
]


@dataclass(frozen=True)
class FinetuneOptions:
    """What a fine-tuning run may change of the stock config; None keeps what the config has.

    epochs: the schedule's milestones move in proportion. batch_size: images a step on one GPU. lr, weight_decay: used
    as given, unscaled. image_size: longer and shorter side in px that images are resized to. eval_interval in epochs.
    channels_last: weights in NHWC order, for speed.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    image_size: tuple[int, int] | None = None
    seed: int = 0
    amp: bool = False
    workers: int = 2
    eval_interval: int = 1
    launcher: str = "none"
    channels_last: bool = False


@dataclass(frozen=True)
class Rates:
    """The optimiser's numbers and where they come from, a line for the log. batch: images a step, of all ranks.

    left_out: which images training passes over, a line as well; None where it has them all. faults: lines about boxes
    that are lost.
    """

    lr: float
    weight_decay: float
    reason: str
    batch: int
    left_out: str | None = None
    faults: tuple[str, ...] = ()


def rates(config: Config, options: FinetuneOptions, *, pretrained: bool, world_size: int) -> Rates:
    """The learning rate and weight decay of the run."""
    optimizer = config.optim_wrapper.optimizer
    base, remark = base_batch(config)
    batch = config.train_dataloader.batch_size * world_size
    # An update may be of several steps, as its rate is of their images.
    seen = batch * int(config.optim_wrapper.get("accumulative_counts", 1))
    scale = seen / base
    factors = (PRETRAINED_LR_FACTOR, PRETRAINED_WEIGHT_DECAY_FACTOR) if pretrained else (1.0, 1.0)
    decay = float(optimizer.get("weight_decay", 0.0))
    lr = options.lr if options.lr is not None else optimizer.lr * scale * factors[0]
    weight_decay = options.weight_decay if options.weight_decay is not None else decay * factors[1]
    where = f"stock {optimizer.lr:g} x {seen}/{base} images{remark}" + (
        f" x {factors[0]:g} for pretrained weights" if pretrained else ""
    )
    reason = f"lr {lr:g} ({'given' if options.lr is not None else where}), weight decay {weight_decay:g}"
    return Rates(lr, weight_decay, f"{reason} (stock {decay:g})", batch)


def finetune_config(
    stock: Config,
    train: Labels,
    val: Labels | None,
    work_dir: Path,
    options: FinetuneOptions,
    *,
    pretrained: bool,
    world_size: int = 1,
) -> tuple[Config, Rates]:
    """The config to run, and its rates. ``stock`` is left alone.

    val: of the same classes (see `labels.matched`). pretrained: whether weights of our own follow, so that the
    paper's factors apply. Raises AlignDetError when the model cannot be fine-tuned on boxes, there are none, or the
    config lacks what training needs.
    """
    config = deepcopy(stock)
    _require(config, (*_TO_TRAIN, *(_TO_MEASURE if val is not None else ())))
    for number in _NUMBERS:
        _require_number(config, number)
    set_classes(config.model, train.classes)
    require_no_map_of_classes(config.model)
    size = ImageSize.of(config, options.image_size)
    size.fit_batches(config)
    _set_loader(config.train_dataloader, train, options, config, size)
    kept = require_boxes(train, "learn from", _filter_of(config.train_dataloader.dataset))
    if options.batch_size is not None:
        config.train_dataloader.batch_size = options.batch_size
    measured = _set_evaluation(config, val, options, size)
    chosen = rates(config, options, pretrained=pretrained, world_size=world_size)
    usual = config.optim_wrapper.optimizer.lr
    config.optim_wrapper.optimizer.update(lr=chosen.lr, weight_decay=chosen.weight_decay)
    if options.amp:
        for name in ("loss_scale", "dtype"):  # of mmengine's AmpOptimWrapper
            config.optim_wrapper.pop(name, None)
        config.optim_wrapper.type = Bfloat16OptimWrapper.__name__  # the config is also printed, as Python
    _set_schedule(config, kept.number, options, chosen.batch, size)
    for scheduler in config.param_scheduler:
        scale_floor(scheduler, chosen.lr / usual if usual else 1.0)
    config.work_dir = str(work_dir)
    config.default_scope = config.get("default_scope") or "mmdet"
    config.randomness = {**(config.get("randomness") or {}), "seed": options.seed}
    config.launcher = options.launcher
    config.auto_scale_lr = {"enable": False, "base_batch_size": chosen.batch}
    hooks = config.get("default_hooks") or {}
    checkpoint, unmeasured = _checkpoints(hooks.get("checkpoint") or {})
    config.default_hooks = {**hooks, "checkpoint": checkpoint}
    learned = f"{train.source}: training passes over {kept.faults}" if kept.faults else None
    faults = tuple(line for line in (learned, measured, unmeasured) if line is not None)
    return config, replace(chosen, left_out=kept.left_out, faults=faults)


def _checkpoints(stock: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The stock hook as far as a run can still go on, and a line about what it wants and is not measured here.

    An epoch is the most that a kill may cost, and of two kept ones mmengine removes the first before it writes another.
    """
    kept = stock.get("max_keep_ckpts", 2)
    chosen = {name: stock[name] for name in _OF_CHECKPOINTS if name in stock}
    best, unmeasured = stock.get("save_best"), None
    if best is not None and best != "auto" and not str(best).startswith(_MEASURED):
        del chosen["save_best"]
        unmeasured = f"the config's save_best, {best}, is not measured here: no best checkpoint is kept"
    number = kept if kept < 0 else max(2, kept)
    return {**chosen, "type": "CheckpointHook", "interval": 1, "max_keep_ckpts": number}, unmeasured


def evaluation_config(
    stock: Config, val: Labels, work_dir: Path, options: FinetuneOptions
) -> tuple[Config, str | None]:
    """The config that only tests, on ``val``, and a line about boxes that no detector can find, if there are any.

    Raises AlignDetError when the model cannot be tested on boxes, there are none, or the config does not say how.
    """
    config = deepcopy(stock)
    _require(config, _TO_MEASURE)
    set_classes(config.model, val.classes)
    faults = _set_evaluation(config, val, options, ImageSize.of(config, options.image_size))
    config.work_dir = str(work_dir)
    for part in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "val_dataloader", "val_cfg",
                 "val_evaluator"):  # fmt: skip
        config[part] = None
    # mmengine loads those weights when it tests, over the ones that it was given.
    config.load_from, config.resume = None, False
    config.default_scope = config.get("default_scope") or "mmdet"
    return config, faults


def _require(config: Config, parts: Sequence[str]) -> None:
    missing = [part for part in parts if _at(config, part) is None]
    if missing:
        raise AlignDetError(
            f"{config.filename or 'the config'} has no {', '.join(missing)}: that is enough to pretrain, not to "
            f"fine-tune or evaluate. Take the rest from mmdet, before your own settings: _base_ = {_BASES}"
        )


def _require_number(config: Config, path: str) -> None:
    value = _at(config, path)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise AlignDetError(
            f"{path} of the config is {value!r}, and no number: correct it, or the --cfg-options"
        )


def _at(config: Config, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, (Config, dict)) else None
    return value


def _set_evaluation(
    config: Config, val: Labels | None, options: FinetuneOptions, size: ImageSize
) -> str | None:
    """Returns a line about boxes of ``val`` that AP counts and nobody finds, or that it does not count."""
    if val is None:
        for name in ("val", "test"):
            for part in ("dataloader", "evaluator", "cfg"):
                config[f"{name}_{part}"] = None
        return None
    kept = require_boxes(val, "measure AP on", _filter_of(config.val_dataloader.dataset))
    _set_loader(config.val_dataloader, val, options, config, size)
    config.val_evaluator = {
        "type": METRIC,
        "ann_file": str(val.annotations),
        "metric": "bbox",
        "proposal_nums": _MOST_BOXES,
        # Over the ranks' own connection; "cpu" would make a folder where the command runs, which nodes may not share.
        "collect_device": "gpu",
    }
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    config.val_cfg = config.get("val_cfg") or {"type": "ValLoop"}
    config.test_cfg = config.get("test_cfg") or {"type": "TestLoop"}
    if kept.faults is None:
        return None
    return f"{val.source}: AP is lower than it should be, or lacks them, for {kept.faults}"


def _set_loader(
    loader: ConfigDict, labels: Labels, options: FinetuneOptions, config: Config, size: ImageSize
) -> None:
    loader.num_workers = options.workers
    loader.persistent_workers = options.workers > 0
    stock = _innermost(loader.dataset)
    testing = bool(stock.get("test_mode", False))
    ours = ConfigDict(
        type="CocoDataset",
        ann_file=str(labels.annotations),
        data_prefix={"img": f"{labels.images}/"},
        metainfo={"classes": labels.classes},
        pipeline=size.fit(stock.get("pipeline") or config.get("train_pipeline"), training=not testing),
        test_mode=testing,
        filter_cfg=stock.get("filter_cfg"),
    )
    # Figures are of every image once.
    loader.dataset = ours if testing else _wrapped(loader.dataset, ours, size)


def _wrapped(dataset: ConfigDict, ours: ConfigDict, size: ImageSize) -> ConfigDict:
    """``ours`` inside what the config wraps its dataset in, as far as that repeats or mixes images."""
    if class_name(dataset["type"]) not in (*_REPEATING, "MultiImageMixDataset"):
        return ours
    dataset.dataset = _wrapped(dataset.dataset, ours, size)
    if "pipeline" in dataset:  # half of the pipeline is the mix's own
        dataset.pipeline = size.fit(dataset.pipeline, training=True)
    return dataset


def _innermost(dataset: ConfigDict) -> ConfigDict:
    """The first dataset that wraps no other: its pipeline and filter are those of all."""
    while "dataset" in dataset or dataset.get("datasets"):
        dataset = dataset.dataset if "dataset" in dataset else dataset.datasets[0]
    return dataset


def _filter_of(dataset: ConfigDict) -> Any:
    """By which mmdet leaves images out; a dataset to measure on keeps all."""
    inner = _innermost(dataset)
    return None if inner.get("test_mode") else inner.get("filter_cfg")


def _repeats(dataset: ConfigDict) -> int:
    """How often an epoch has an image. Rare classes, which may come oftener, are not looked for."""
    times = dataset.get("times", 1) if class_name(dataset["type"]) == "RepeatDataset" else 1
    return int(times) * (_repeats(dataset.dataset) if "dataset" in dataset else 1)


def _set_schedule(config: Config, images: int, options: FinetuneOptions, batch: int, size: ImageSize) -> None:
    """Move the schedule to the run's length. images: those of an epoch that are not repetitions."""
    usual = config.train_cfg.get("max_epochs")
    if usual is None:
        raise AlignDetError("the config counts iterations, not epochs: use an epoch-based schedule of it")
    epochs = options.epochs or usual
    # Of an epoch, about.
    move_schedule(config, epochs, max(1, images * _repeats(config.train_dataloader.dataset) // batch))
    move_switches(config, epochs)
    config.train_cfg.update(max_epochs=epochs, val_interval=options.eval_interval)
    for name in ("val_begin", "dynamic_intervals"):
        config.train_cfg.pop(name, None)
    for hook in config.get("custom_hooks") or []:
        if "switch_pipeline" in hook:
            hook.switch_pipeline = size.fit(hook.switch_pipeline, training=True)
