"""mmengine's Runner of a planned run: loader, loop, optimiser, schedules and hooks, and what it says first."""

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.runner import Runner

from aligndet_train.box_domain import BoxDomainPretrainer
from aligndet_train.config import PretrainConfig
from aligndet_train.hooks import AnnounceHook, CheckpointHook, SkippedHook, StepHook, ThroughputHook
from aligndet_train.initial_weights import names_weights
from aligndet_train.loader import build_loader
from aligndet_train.loop import step_runner
from aligndet_train.momentum import teacher_line
from aligndet_train.monitoring import MetricsHook, NonFiniteHook, PictureHook
from aligndet_train.optimizer import wrapped_optimizer
from aligndet_train.plan import Plan
from aligndet_train.schedules import Schedule, half_cosine, warmup_multistep
from proposals.dataset.clusters import read_cluster_record


def build_runner(plan: Plan, model: BoxDomainPretrainer, optimizer: torch.optim.Optimizer) -> Runner:
    """The Runner that trains ``model`` from ``plan.start`` to ``plan.steps``."""
    config, options = plan.run.pretrain, plan.options
    return step_runner(
        plan,
        model,
        build_loader(
            plan.dataset,
            config,
            steps=plan.steps - plan.start,
            workers=options.workers,
            start=plan.stream,
            damaged=options.damaged,
            cache=options.cache,
        ),
        wrapped_optimizer(optimizer, amp=options.amp, clip_grad=config.clip_grad),
        hooks=[
            AnnounceHook(_summary(plan, model, optimizer)),
            ThroughputHook(config.batch_size * get_world_size()),
            StepHook(config.seed, *_schedules(config, plan.steps)),
            CheckpointHook(plan.work_dir, options.checkpoint_interval, plan.identity, plan.start),
            SkippedHook(options.log_interval),
            NonFiniteHook(plan.work_dir),
            MetricsHook(plan.work_dir, plan.start),
            PictureHook(plan.work_dir, options.picture_interval),
        ],
        seed=config.seed,
        record={"model": plan.run.stock_model, "pretrain": plan.identity["pretrain"]},
        name=f"{plan.run.name}_from_{plan.start}",
    )


def _schedules(config: PretrainConfig, steps: int) -> tuple[Schedule, Schedule]:
    learning_rate = warmup_multistep(
        steps,
        warmup=min(config.warmup_steps, steps // 5),
        warmup_ratio=config.warmup_ratio,
        milestones=config.milestones,
        gamma=config.gamma,
    )
    return learning_rate, half_cosine(config.momentum_start, config.momentum_end, steps)


_RANDOM = (
    "the backbone begins with random weights and keeps them, as it is not trained here: likely a mistake. "
    "Name weights: --backbone-weights"
)


_NOT_LOADED = (
    "the config's load_from ({0}) is not read: --backbone-weights FILE takes the backbone of such a file, and "
    "model.init_cfg=dict(type='Pretrained', checkpoint=FILE) in the config all that fits"
)


def _summary(plan: Plan, model: BoxDomainPretrainer, optimizer: torch.optim.Optimizer) -> list[str]:
    config = plan.run.pretrain
    spec = model.data_preprocessor.spec
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.student.backbone.parameters())
    global_batch = config.batch_size * get_world_size()
    rate, base = optimizer.param_groups[0]["initial_lr"], config.optimizer["lr"]
    scaled = "" if rate == base else f" ({base:g} scaled by {global_batch}/{config.base_batch_size} images)"
    classes = [_class_line(plan)] if config.classes is not None else []
    return [
        f"{plan.run.name}: {plan.run.stock_model['type']}, {trainable:,} trainable parameters, "
        f"{frozen:,} frozen in the backbone, on {get_device()}",
        f"{len(plan.dataset):,} images, {plan.dataset.manifest.totals.proposals:,} proposals, {plan.steps:,} steps of "
        f"{global_batch} images, learning rate {rate:g}{scaled}",
        *classes,
        teacher_line(_schedules(config, plan.steps)[1]),
        *([_RANDOM] if plan.start == 0 and not names_weights(plan.run.stock_model) else []),
        *([_NOT_LOADED.format(plan.run.load_from)] if plan.run.load_from else []),
        *model.remarks,
        f"images as {'RGB' if spec.bgr_to_rgb else 'BGR'}, mean {spec.mean}, std {spec.std}",
        f"resumed at step {plan.start}" if plan.start else "from step 0",
    ]


def _class_line(plan: Plan) -> str:
    if read_cluster_record(plan.dataset.root) is None:
        return (
            f"class branch: {plan.dataset.root} has no clusters, so every proposal is of one class, `object` "
            "(aligndet regions and aligndet cluster make clusters)"
        )
    return f"class branch: learns {plan.run.pretrain.classes} clusters"
