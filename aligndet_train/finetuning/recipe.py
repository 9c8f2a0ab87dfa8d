"""From a stock mmdet config to one that fine-tunes on the user's own labels, with the paper's recipe.

Starting from pretrained neck and heads, the learning rate is 1.5 times and the weight decay half of the detector's
usual ones (AlignDet's fine-tuning). Both are also scaled linearly from the batch size the config was written for.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from aligndet_train.finetuning.labels import Labels
from aligndet_train.training import Bfloat16OptimWrapper
from proposals.errors import AlignDetError

PRETRAINED_LR_FACTOR = 1.5
PRETRAINED_WEIGHT_DECAY_FACTOR = 0.5
_STOCK_BATCH = 16  # images a step that mmdet's schedules are written for: 8 GPUs of 2
_WARMUP_SHARE = 10


@dataclass(frozen=True)
class FinetuneOptions:
    """What a fine-tuning run may change of the stock config; None keeps what the config has.

    epochs: the schedule's milestones move in proportion. batch_size: images a step on one GPU. lr, weight_decay: used
    as given, unscaled. image_size: longer and shorter side in px that images are resized to. eval_interval in epochs.
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


@dataclass(frozen=True)
class Rates:
    """The optimiser's numbers and where they come from, a line for the log."""

    lr: float
    weight_decay: float
    reason: str


def rates(config: Config, options: FinetuneOptions, *, pretrained: bool, world_size: int) -> Rates:
    """The learning rate and weight decay of the run."""
    optimizer = config.optim_wrapper.optimizer
    base = (config.get("auto_scale_lr") or {}).get("base_batch_size", _STOCK_BATCH)
    batch = config.train_dataloader.batch_size * world_size
    scale = batch / base
    factors = (PRETRAINED_LR_FACTOR, PRETRAINED_WEIGHT_DECAY_FACTOR) if pretrained else (1.0, 1.0)
    decay = float(optimizer.get("weight_decay", 0.0))
    lr = options.lr if options.lr is not None else optimizer.lr * scale * factors[0]
    weight_decay = options.weight_decay if options.weight_decay is not None else decay * factors[1]
    where = f"stock {optimizer.lr:g} x {batch}/{base} images" + (
        f" x {factors[0]:g} for pretrained weights" if pretrained else ""
    )
    reason = f"lr {lr:g} ({'given' if options.lr is not None else where}), weight decay {weight_decay:g}"
    return Rates(lr, weight_decay, f"{reason} (stock {decay:g})")


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

    pretrained: whether weights of our own follow, so that the paper's factors apply. Raises AlignDetError when the
    model cannot be fine-tuned on boxes, or the validation set has other classes.
    """
    config = deepcopy(stock)
    if val is not None and val.classes != train.classes:
        raise AlignDetError(
            f"{val.annotations} has other classes than {train.annotations}: merge their categories"
        )
    _set_classes(config, train)
    _set_loader(config.train_dataloader, train, options, config)
    if options.batch_size is not None:
        config.train_dataloader.batch_size = options.batch_size
    set_evaluation(config, val, options)
    chosen = rates(config, options, pretrained=pretrained, world_size=world_size)
    config.optim_wrapper.optimizer.update(lr=chosen.lr, weight_decay=chosen.weight_decay)
    if options.amp:
        config.optim_wrapper.type = Bfloat16OptimWrapper
    _set_schedule(config, train, options, world_size)
    config.work_dir = str(work_dir)
    config.randomness = {"seed": options.seed}
    config.launcher = options.launcher
    config.auto_scale_lr = {"enable": False, "base_batch_size": _STOCK_BATCH}
    config.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2}
    return config, chosen


def set_evaluation(config: Config, val: Labels | None, options: FinetuneOptions) -> None:
    """Point validation and test at ``val``, or take them out."""
    if val is None:
        for name in ("val", "test"):
            for part in ("dataloader", "evaluator", "cfg"):
                config[f"{name}_{part}"] = None
        return
    _set_loader(config.val_dataloader, val, options, config)
    config.val_evaluator = {"type": "CocoMetric", "ann_file": str(val.annotations), "metric": "bbox"}
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    config.val_cfg = config.get("val_cfg") or {"type": "ValLoop"}
    config.test_cfg = config.get("test_cfg") or {"type": "TestLoop"}


def _set_classes(config: Config, labels: Labels) -> None:
    heads = list(_with_classes(config.model))
    if not heads:
        raise AlignDetError("no head of the model says num_classes: it cannot be fitted to your categories")
    if _has_masks(config.model):
        raise AlignDetError(
            "this detector also predicts masks, and fine-tuning here is on boxes. Use its box-only sibling, or drop "
            "the branch: --cfg-options model.roi_head.mask_head=None"
        )
    usual = max(head["num_classes"] for head in heads)
    for head in heads:
        # Class-agnostic parts (an RPN has one class) stay so.
        if head["num_classes"] == usual:
            head["num_classes"] = len(labels.classes)


def _with_classes(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if isinstance(node.get("num_classes"), int):
            yield node
        for child in node.values():
            yield from _with_classes(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _with_classes(child)


def _has_masks(model: ConfigDict) -> bool:
    return bool((model.get("roi_head") or {}).get("mask_head") or model.get("mask_head"))


def _set_loader(loader: ConfigDict, labels: Labels, options: FinetuneOptions, config: Config) -> None:
    loader.num_workers = options.workers
    loader.persistent_workers = options.workers > 0
    stock = _innermost(loader.dataset)
    pipeline = _resized(stock.get("pipeline") or config.get("train_pipeline"), options.image_size)
    loader.dataset = ConfigDict(
        type="CocoDataset",
        ann_file=str(labels.annotations),
        data_prefix={"img": f"{labels.images}/"},
        metainfo={"classes": labels.classes},
        pipeline=pipeline,
        test_mode=bool(stock.get("test_mode", False)),
        filter_cfg=stock.get("filter_cfg"),
    )


def _innermost(dataset: ConfigDict) -> ConfigDict:
    while "dataset" in dataset:  # RepeatDataset, ClassBalancedDataset, MultiImageMixDataset
        dataset = dataset.dataset
    return dataset


def _resized(pipeline: Any, size: tuple[int, int] | None) -> Any:
    changed = deepcopy(pipeline)
    for step in changed if size is not None else ():
        if step["type"] in ("Resize", "RandomResize", "RandomChoiceResize"):
            step.pop("scales", None)
            step.update(type="Resize", scale=size, keep_ratio=True)
            step.pop("resize_type", None)
            step.pop("ratio_range", None)
        if step["type"] == "LoadAnnotations":
            step.pop("with_mask", None)
    return changed


def _set_schedule(config: Config, train: Labels, options: FinetuneOptions, world_size: int) -> None:
    usual = config.train_cfg.get("max_epochs")
    if usual is None:
        raise AlignDetError("the config counts iterations, not epochs: use an epoch-based schedule of it")
    epochs = options.epochs or usual
    config.train_cfg.update(max_epochs=epochs, val_interval=options.eval_interval)
    for name in ("val_begin", "dynamic_intervals"):
        config.train_cfg.pop(name, None)
    steps = _steps(train, config.train_dataloader.batch_size * world_size, epochs)
    for scheduler in config.param_scheduler:
        _move(scheduler, epochs / usual, epochs, steps)


def _steps(train: Labels, batch: int, epochs: int) -> int:
    images = len(json.loads(train.annotations.read_bytes())["images"])
    return max(1, images // batch) * epochs


def _move(scheduler: ConfigDict, factor: float, epochs: int, steps: int) -> None:
    if not scheduler.get("by_epoch", True):  # a warm-up, in steps
        scheduler.end = max(1, min(scheduler.end, steps // _WARMUP_SHARE))
        return
    if "milestones" in scheduler:
        scheduler.milestones = [max(1, round(m * factor)) for m in scheduler.milestones]
    for name in ("begin", "end", "T_max"):
        if name in scheduler:
            scheduler[name] = round(scheduler[name] * factor)
    if "end" in scheduler:
        scheduler.end = max(scheduler.end, epochs)
