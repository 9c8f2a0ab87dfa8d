"""One image-domain run on mmengine's Runner, resumed where it stopped; leaves last.pth and backbone.pth."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.utils.data import DataLoader

from aligndet_train.backbones.ours import BACKBONE_FILE, STAGE, write_backbone
from aligndet_train.backbones.registry import BackboneChoice
from aligndet_train.checkpoint import LAST, as_damage, decoded, encoded, load_checkpoint, saved_run
from aligndet_train.distributed import joined_processes, lost_ranks_explained
from aligndet_train.hooks import AnnounceHook, CheckpointHook, SkippedHook, ThroughputHook
from aligndet_train.image_domain.collapse import CollapseMonitor
from aligndet_train.image_domain.config import ImageDomainConfig
from aligndet_train.image_domain.crops import CropStream
from aligndet_train.image_domain.hooks import FIXED_RATE, CollapseHook, KnnHook, ScheduleHook
from aligndet_train.image_domain.knn import LabelledCrops
from aligndet_train.image_domain.methods import build_model
from aligndet_train.image_domain.model import ImageDomainModel
from aligndet_train.loader import step_loader
from aligndet_train.loop import run_to_the_end, step_runner
from aligndet_train.monitoring import NonFiniteHook
from aligndet_train.optimizer import wrapped_optimizer
from aligndet_train.plain_config import is_config
from aligndet_train.resumable import (
    ResumablePlan,
    dataset_identity,
    require_one_dataset,
    require_one_start,
)
from aligndet_train.run_options import RunOptions
from aligndet_train.schedules import half_cosine
from aligndet_train.stream import Sample, StreamState
from aligndet_train.work_folder import alone_in
from proposals.dataset import ProposalDataset, open_dataset
from proposals.errors import AlignDetError

_ADVICE = "Lower the learning rate (--cfg-options lr=...), or train without --amp, in a new --work-dir"


@dataclass(frozen=True, kw_only=True)
class Plan(ResumablePlan):
    """Of the image-domain stage."""

    choice: BackboneChoice
    config: ImageDomainConfig


def pretrain_backbone(
    choice: BackboneChoice,
    config: ImageDomainConfig,
    data: Path,
    work_dir: Path,
    options: RunOptions,
    labelled: LabelledCrops | None = None,
    knn_interval: int | None = None,
) -> Path:
    """Run (or resume) the image-domain stage; returns the path of backbone.pth.

    labelled: pictures that k-NN accuracy is measured on, at both ends and every ``knn_interval`` steps.
    Raises AlignDetError when ``work_dir`` holds another run, one is at work there, or the dataset cannot be read.
    """
    last = work_dir / LAST
    explained = lost_ranks_explained(f"{last} holds what was done: the same command goes on from there")
    with joined_processes(options.launcher), explained:
        dataset = open_dataset(data)
        with alone_in(work_dir, options.launcher):
            return _run(_plan(choice, config, dataset, work_dir, options), labelled, knn_interval)


def _run(plan: Plan, labelled: LabelledCrops | None, knn_interval: int | None) -> Path:
    out = plan.work_dir / BACKBONE_FILE
    knn = [KnnHook(labelled, plan.work_dir, knn_interval)] if labelled is not None else []
    if plan.saved and plan.start >= plan.steps:
        print_log(f"{plan.work_dir} is complete already, {plan.steps} steps: nothing to do")
        # One that is older than the checkpoint is of a run before, if this one was killed here.
        old = not out.exists() or out.stat().st_mtime_ns < (plan.work_dir / LAST).stat().st_mtime_ns
        if old and is_main_process():
            write_backbone(plan.saved, out)
        for hook in knn:
            hook.finish(partial(_saved_model, plan, plan.saved), plan.steps)
        return out
    model = build_model(plan.choice, plan.config).to(get_device())
    optimizer = build_optimizer(model, plan.config, get_world_size())
    plan.restore(model, optimizer)
    run_to_the_end(_runner(plan, model, optimizer, knn))
    if is_main_process():
        write_backbone(load_checkpoint(plan.work_dir / LAST), out)
    return out


def _saved_model(plan: Plan, saved: dict[str, Any]) -> ImageDomainModel:
    model = build_model(plan.choice, plan.config)
    model.to(get_device())
    with as_damage(plan.work_dir / LAST):
        model.load_state_dict(saved["model"])
    return model


def _plan(
    choice: BackboneChoice,
    config: ImageDomainConfig,
    dataset: ProposalDataset,
    work_dir: Path,
    options: RunOptions,
) -> Plan:
    require_one_dataset(dataset)
    global_batch = config.batch_size * get_world_size()
    if config.batch_size < 2:
        raise AlignDetError("batch normalisation needs 2 images a step on each GPU at least: --batch-size 2")
    steps = config.iterations or max(1, config.epochs * len(dataset) // global_batch)
    identity = _identity(choice, config, dataset, steps, options)
    saved = saved_run(work_dir, identity) if options.resume else None
    require_one_start(work_dir, int(saved["step"]) if saved else 0)
    return Plan(
        choice=choice,
        config=config,
        dataset=dataset,
        work_dir=work_dir,
        options=options,
        steps=steps,
        identity=identity,
        saved=saved,
    )


def _identity(
    choice: BackboneChoice,
    config: ImageDomainConfig,
    dataset: ProposalDataset,
    steps: int,
    options: RunOptions,
) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    # Ranks may change on resume, the global batch may not.
    settings["global_batch"] = settings.pop("batch_size") * get_world_size()
    # Checkpoints of before there was a choice do not name it.
    if config.optimizer == "sgd":
        del settings["optimizer"]
    identity = {
        "stage": STAGE,
        "method": config.method,
        "backbone": choice.config,
        "inputs": dataclasses.asdict(choice.inputs),
        "settings": settings,
        "steps": steps,
        "amp": options.amp,
        "dataset": dataset_identity(dataset),
    }
    return decoded(encoded(identity))


def build_optimizer(
    model: ImageDomainModel, config: ImageDomainConfig, world_size: int
) -> torch.optim.Optimizer:
    """The config's, its rate scaled linearly with the global batch; some parameters' rate stays as it begins."""
    rate = config.lr * config.batch_size * world_size / config.base_batch_size
    fixed = list(model.fixed_rate_parameters())
    known = {id(parameter) for parameter in fixed}
    scheduled = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": scheduled, "lr": rate, "initial_lr": rate, FIXED_RATE: False},
        {"params": fixed, "lr": rate, "initial_lr": rate, FIXED_RATE: True},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay)


def build_loader(plan: Plan) -> "DataLoader[Sample]":
    """This rank's batches (lists of samples) from where the order goes on to the end of the run."""
    config, options = plan.config, plan.options
    return step_loader(
        plan.dataset,
        lambda dataset: CropStream(dataset, config, options.damaged),
        plan.stream or StreamState(config.seed, 0, 0),
        batch_size=config.batch_size,
        steps=plan.steps - plan.start,
        window=config.shard_window,
        workers=options.workers,
        cache=options.cache,
    )


def with_global_statistics(model: nn.Module) -> nn.Module:
    """``model`` with batch statistics over all ranks. torch has them for GPUs only: on CPUs each rank keeps its own."""
    if get_world_size() == 1 or not torch.cuda.is_available():
        return model
    return synchronised(model)


def synchronised(model: nn.Module) -> nn.Module:
    """``model`` with SyncBatchNorm in place of every batch normalisation, and all else as it was."""
    # torch's own would drop the activation that timm keeps inside its normalisation layers.
    converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def _runner(
    plan: Plan, model: ImageDomainModel, optimizer: torch.optim.Optimizer, extra: list[KnnHook]
) -> Runner:
    config, options = plan.config, plan.options
    monitor = CollapseMonitor(config.projection_dims, config.collapse_ratio, config.collapse_window)
    return step_runner(
        plan,
        with_global_statistics(model),
        build_loader(plan),
        wrapped_optimizer(optimizer, amp=options.amp),
        hooks=[
            AnnounceHook(_summary(plan, model, optimizer)),
            ThroughputHook(config.batch_size * get_world_size()),
            ScheduleHook(config.seed, half_cosine(1.0, 0.0, plan.steps)),
            CollapseHook(monitor, options.log_interval),
            NonFiniteHook(plan.work_dir, _ADVICE),
            CheckpointHook(plan.work_dir, options.checkpoint_interval, plan.identity, plan.start, _ADVICE),
            SkippedHook(options.log_interval),
            *extra,
        ],
        seed=config.seed,
        record={"backbone": plan.choice.config, "settings": plan.identity["settings"]},
        name=f"{config.method}_from_{plan.start}",
    )


def _summary(plan: Plan, model: ImageDomainModel, optimizer: torch.optim.Optimizer) -> list[str]:
    config, inputs = plan.config, plan.choice.inputs
    global_batch = config.batch_size * get_world_size()
    trainable = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    rate = optimizer.param_groups[0]["initial_lr"]
    drawn_from = "whole images" if config.crops == "images" else "proposals"
    return [
        f"{config.title}: {plan.choice.name}, {trainable:,} trainable parameters in the backbone, on {get_device()}",
        f"{len(plan.dataset):,} images, views of {drawn_from}, {plan.steps:,} steps of {global_batch} images, "
        f"learning rate {rate:g} ({config.lr:g} x {global_batch}/{config.base_batch_size})",
        f"output_std of an even spread: {config.projection_dims**-0.5:.5f}; a collapsed output has none",
        *config.remarks(len(plan.dataset)),
        f"images as {'RGB' if inputs.bgr_to_rgb else 'BGR'}, mean {inputs.mean}, std {inputs.std}",
        f"resumed at step {plan.start}"
        if plan.start
        else f"from step 0 and random weights{_unless_named(plan)}",
    ]


def _unless_named(plan: Plan) -> str:
    """What who gave a detector's config might take for granted."""
    return ": those that the config names are not loaded" if is_config(plan.choice.name) else ""
