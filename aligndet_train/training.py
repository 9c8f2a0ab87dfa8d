"""One pretraining run: everything put together on mmengine's Runner, resumed where it stopped."""

import dataclasses
import hashlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from aligndet_train.box_domain import BoxDomainPretrainer, build_pretrainer
from aligndet_train.checkpoint import (
    LAST,
    as_damage,
    decoded,
    encoded,
    identity_difference,
    load_checkpoint,
)
from aligndet_train.config import PretrainConfig, RunConfig, head_type
from aligndet_train.detectors import adapter_for
from aligndet_train.distributed import (
    any_rank,
    join_processes,
    leave_processes,
    lost_ranks_explained,
    wrapped,
)
from aligndet_train.hooks import AnnounceHook, CheckpointHook, SkippedHook, StepHook, ThroughputHook
from aligndet_train.monitoring import MetricsHook, NonFiniteHook, PictureHook
from aligndet_train.schedules import Schedule, half_cosine, warmup_multistep
from aligndet_train.stream import ProposalStream, Sample, StepSampler, StreamState
from aligndet_train.stream.cache import CachedDataset, CacheSpec, Prefetcher
from aligndet_train.stream.dataset import Damaged, readable
from proposals.dataset import ProposalDataset, open_dataset
from proposals.dataset.clusters import read_cluster_record, read_clusters
from proposals.errors import AlignDetError

# A signal reaches the ranks in different steps; asking in each would keep their hosts in lockstep.
_STEPS_BETWEEN_AGREEMENTS = 4
# For the trainer to finish its step and write a checkpoint, with its workers alive.
_SECONDS_TO_STOP = 100


@dataclass(frozen=True)
class RunOptions:
    """How to run, none of which changes what is computed (but for ``amp``'s precision).

    workers: decoding processes. intervals in steps; a picture_interval of 0 draws none. resume: continue from
    WORK_DIR/last.pth when it is there. damaged: see ProposalStream. cache: where shards are kept on their way; None:
    they are read where they are.
    """

    amp: bool = False
    workers: int = 2
    log_interval: int = 10
    checkpoint_interval: int = 500
    picture_interval: int = 500
    resume: bool = True
    launcher: str = "none"
    damaged: Damaged = "raise"
    cache: CacheSpec | None = None


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast. Its range is float32's: no loss scaling, so no wait for the GPU.

    mmengine's AmpOptimWrapper always scales, and refuses the CPU.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Autocast on the model's device, besides what OptimWrapper does."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


class TrainingStoppedError(AlignDetError):
    """Training was asked to stop, and stopped at the end of a step with a checkpoint."""

    exit_code = 130


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one has its ordinary effect, it kills."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ordinary = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        stop.set()
        for each, handler in ordinary.items():
            signal.signal(each, handler)

    for number in ordinary:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in ordinary.items():
            signal.signal(number, handler)


def leave_signals_to_the_parent(worker_id: int) -> None:
    """A DataLoader worker's start: Ctrl-C, torchrun and Slurm signal the whole group, the trainer says when to stop.

    A worker whose trainer is killed notices by itself; one that was asked to end does so after a while.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_TO_STOP))


@contextmanager
def workers_ended(loader: "DataLoader[Sample]") -> Iterator[None]:
    """End the loader's processes on the way out, also of an error: at exit Python would signal and wait for them."""
    try:
        yield
    finally:
        if loader.num_workers and loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


class StreamTrainLoop(IterBasedTrainLoop):
    """mmengine's loop without its "advance the dataloader": the sampler itself starts at the step."""

    def __init__(self, *args: Any, start_step: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._iter = start_step

    def run(self) -> Any:
        """Train from the start step to the last, or to the first Ctrl-C or SIGTERM of any rank; returns the model."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        with stop_requests() as stop:
            while self._iter < self._max_iters and not self._stopped(stop):
                self.run_iter(readable(next(self.dataloader_iterator)))
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _stopped(self, stop: threading.Event) -> bool:
        """Ranks stop after the same step, or they would wait for each other: they ask each other now and then."""
        if get_world_size() == 1:
            return stop.is_set()
        return self._iter % _STEPS_BETWEEN_AGREEMENTS == 0 and any_rank(stop.is_set())


def pretrain(run: RunConfig, data: Path, work_dir: Path, options: RunOptions) -> Path:
    """Run (or resume) box-domain pretraining; returns the path of the last checkpoint.

    Raises AlignDetError when ``work_dir`` holds another run, or the dataset or the backbone weights cannot be read.
    """
    if options.launcher != "none":
        join_processes(options.launcher)
    try:
        with lost_ranks_explained(
            f"{work_dir / LAST} holds what was done: the same command goes on from there"
        ):
            return _pretrain(run, data, work_dir, options)
    finally:
        leave_processes()


def _pretrain(run: RunConfig, data: Path, work_dir: Path, options: RunOptions) -> Path:
    dataset = open_dataset(data)
    plan = _plan(with_classes(run, dataset), dataset, work_dir, options)
    if plan.start >= plan.steps:
        print_log(f"{work_dir} is complete already, {plan.steps} steps: nothing to do")
        return work_dir / LAST
    model = _initialised(plan.run).to(get_device())
    optimizer = build_optimizer(model, plan.run.pretrain, get_world_size())
    if plan.saved:
        with as_damage(work_dir / LAST):
            model.load_state_dict(plan.saved["model"])
            optimizer.load_state_dict(plan.saved["optimizer"])
    runner = _runner(plan, model, optimizer)
    with workers_ended(runner.train_dataloader):
        runner.train()
    if runner.iter < plan.steps:
        raise TrainingStoppedError(
            f"stopped at step {runner.iter} of {plan.steps}; the same command goes on from there"
        )
    return work_dir / LAST


def with_classes(run: RunConfig, dataset: ProposalDataset) -> RunConfig:
    """``run`` with the number of classes made definite, where its family keeps a class branch.

    Raises AlignDetError when the dataset's clusters are damaged, or more than the classes asked for.
    """
    if not adapter_for(run.stock_model["type"], head_type(run.stock_model)).has_classes:
        return run
    record = read_cluster_record(dataset.root)
    clusters, asked = 1 if record is None else record.k, run.pretrain.classes
    if asked is not None and asked < clusters:
        raise AlignDetError(
            f"{dataset.root} has {clusters} clusters, pretrain.classes is {asked}: leave it out to take the dataset's"
        )
    return dataclasses.replace(run, pretrain=dataclasses.replace(run.pretrain, classes=asked or clusters))


@dataclass(frozen=True)
class Plan:
    """A run made definite. identity: what must be equal to continue it; saved: the checkpoint it continues."""

    run: RunConfig
    dataset: ProposalDataset
    work_dir: Path
    options: RunOptions
    steps: int
    identity: dict[str, Any]
    saved: dict[str, Any] | None

    @property
    def start(self) -> int:
        """Steps already done."""
        return int(self.saved["step"]) if self.saved else 0

    @property
    def stream(self) -> StreamState | None:
        """Where the order of samples goes on; None: at its beginning."""
        return StreamState(*self.saved["stream"]) if self.saved else None


def _plan(run: RunConfig, dataset: ProposalDataset, work_dir: Path, options: RunOptions) -> Plan:
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlignDetError(
            f"{work_dir} cannot be a work folder: {error}. Choose another --work-dir"
        ) from error
    steps = total_steps(run.pretrain, len(dataset), get_world_size())
    identity = run_identity(run, dataset, steps, options)
    saved = _saved_state(work_dir, identity) if options.resume else None
    return Plan(run, dataset, work_dir, options, steps, identity, saved)


def total_steps(config: PretrainConfig, images: int, world_size: int) -> int:
    """Steps of the run: ``iterations``, or the epochs' worth of global batches."""
    if config.iterations is not None:
        return config.iterations
    return max(1, config.epochs * images // (config.batch_size * world_size))


def run_identity(run: RunConfig, dataset: ProposalDataset, steps: int, options: RunOptions) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued, as plain JSON data."""
    pretrain = dataclasses.asdict(run.pretrain)
    # Ranks may change on resume, the global batch may not.
    pretrain["global_batch"] = pretrain.pop("batch_size") * get_world_size()
    identity = {
        "config": run.name,
        "stock_model": run.stock_model,
        "pretrain": pretrain,
        "steps": steps,
        "amp": options.amp,
        "dataset": {
            "images": len(dataset),
            # Consolidating a dataset copies its boxes and changes none.
            "manifest": _digest(dataset.manifest.model_copy(update={"consolidated": ()}).model_dump_json()),
        },
    }
    return decoded(encoded(identity))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def build_optimizer(
    model: BoxDomainPretrainer, config: PretrainConfig, world_size: int
) -> torch.optim.Optimizer:
    """The optimiser over trainable parameters only, its rate scaled linearly with the global batch."""
    scale = config.batch_size * world_size / config.base_batch_size
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = {**config.optimizer, "lr": config.optimizer["lr"] * scale, "params": parameters}
    optimizer: torch.optim.Optimizer = OPTIMIZERS.build(settings)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def build_loader(
    dataset: ProposalDataset,
    config: PretrainConfig,
    *,
    steps: int,
    workers: int,
    start: StreamState | None = None,
    damaged: Damaged = "raise",
    cache: CacheSpec | None = None,
) -> "DataLoader[Sample]":
    """``steps`` batches (lists of samples) of this rank, from ``start`` on; None: from the beginning.

    damaged: see ProposalStream. cache: see RunOptions. Batches of workers go through ``readable``.
    """
    expect = None
    clusters = None if config.classes is None else read_clusters(dataset.root, dataset.manifest)
    if cache is not None:
        dataset = CachedDataset(dataset.root, cache)
        expect = Prefetcher(dataset).expect
    sampler = StepSampler(
        dataset.shard_sizes.tolist(),
        start=start or StreamState(config.seed, 0, 0),
        batch_size=config.batch_size,
        steps=steps,
        rank=get_rank(),
        world_size=get_world_size(),
        window=config.shard_window,
        expect=expect,
    )
    return DataLoader(
        ProposalStream(dataset, config.proposals_per_image, clusters, damaged),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=leave_signals_to_the_parent,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _initialised(run: RunConfig) -> BoxDomainPretrainer:
    try:
        return build_pretrainer(run.stock_model, run.pretrain)
    except OSError as error:
        raise AlignDetError(
            f"the backbone's initial weights ({run.stock_model['backbone'].get('init_cfg')}) could not be read: "
            f"{error}. Name a local file with --cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from "
            "random weights with --cfg-options model.backbone.init_cfg=None"
        ) from error


def _saved_state(work_dir: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    path = work_dir / LAST
    if not path.exists():
        return None
    saved = load_checkpoint(path)
    # The config's file name is for people: renaming it changes no run.
    changed = identity_difference({**saved["identity"], "config": identity["config"]}, identity)
    if changed:
        raise AlignDetError(
            f"{path} belongs to another run:\n  "
            + "\n  ".join(changed)
            + "\nUse another --work-dir, or --no-resume to "
            "overwrite it"
        )
    return saved


def _optim_wrapper(optimizer: torch.optim.Optimizer, config: PretrainConfig, amp: bool) -> OptimWrapper:
    clip = None if config.clip_grad is None else {"max_norm": config.clip_grad, "norm_type": 2}
    return (Bfloat16OptimWrapper if amp else OptimWrapper)(optimizer=optimizer, clip_grad=clip)


def _runner(plan: Plan, model: BoxDomainPretrainer, optimizer: torch.optim.Optimizer) -> Runner:
    config, options = plan.run.pretrain, plan.options
    return Runner(
        model=wrapped(model),
        work_dir=str(plan.work_dir),
        train_dataloader=build_loader(
            plan.dataset,
            config,
            steps=plan.steps - plan.start,
            workers=options.workers,
            start=plan.stream,
            damaged=options.damaged,
            cache=options.cache,
        ),
        train_cfg={"type": StreamTrainLoop, "max_iters": plan.steps, "start_step": plan.start},
        optim_wrapper=_optim_wrapper(optimizer, config, options.amp),
        default_hooks={
            "sampler_seed": None,
            "param_scheduler": None,
            "checkpoint": None,
            "logger": {"type": "LoggerHook", "interval": options.log_interval},
        },
        custom_hooks=[
            AnnounceHook(_summary(plan, model, optimizer)),
            ThroughputHook(config.batch_size * get_world_size()),
            StepHook(config.seed, *_schedules(config, plan.steps)),
            CheckpointHook(plan.work_dir, options.checkpoint_interval, plan.identity, plan.start),
            SkippedHook(options.log_interval),
            NonFiniteHook(plan.work_dir),
            MetricsHook(plan.work_dir, plan.start),
            PictureHook(plan.work_dir, options.picture_interval),
        ],
        log_processor={"by_epoch": False, "window_size": options.log_interval},
        # mmengine's own INFO is pages of environment and hook lists; ours begins with AnnounceHook.
        log_level="WARNING",
        randomness={"seed": config.seed},
        launcher=options.launcher,
        default_scope="mmdet",
        # What the run was made of, written into the work folder by mmengine.
        cfg={"model": plan.run.stock_model, "pretrain": plan.identity["pretrain"]},
        experiment_name=f"{plan.run.name}_from_{plan.start}",
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
