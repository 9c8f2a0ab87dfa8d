"""Fine-tune and evaluate: mmengine's Runner, whose checkpoints resume and whose figures become one JSON file."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from aligndet_train.allocator import keep_freed_memory
from aligndet_train.backbones.files import WeightsFile, read_file
from aligndet_train.checkpoint import identity_difference
from aligndet_train.console import say, warn
from aligndet_train.detectors.class_names import class_name
from aligndet_train.detectors.float32 import keep_sensitive_float32
from aligndet_train.detectors.two_stage import repeated_regressor
from aligndet_train.distributed import any_rank, joined_processes, lost_ranks_explained
from aligndet_train.equals import put_equals_in_place
from aligndet_train.export import KeyReport, key_report
from aligndet_train.finetuning.label_warnings import label_warnings
from aligndet_train.finetuning.labels import Labels, matched
from aligndet_train.finetuning.nonfinite import StopAtNonFiniteHook
from aligndet_train.finetuning.other_model import other_model_warning
from aligndet_train.finetuning.recipe import FinetuneOptions, Rates, evaluation_config, finetune_config
from aligndet_train.finetuning.unreadable import unreadable_image_named
from aligndet_train.loop import memory_blamed
from aligndet_train.memory_order import ChannelsLastHook
from aligndet_train.misfits import misfits_blamed
from aligndet_train.resumable import require_one_start
from proposals.dataset.files import file_sha256, write_atomically
from proposals.errors import AlignDetError

RESULTS = "results.json"
_RUN = "run.json"
# CocoMetric's names, as papers write them.
_FIGURES = {
    "mAP": "AP",
    "mAP_50": "AP50",
    "mAP_75": "AP75",
    "mAP_s": "AP_S",
    "mAP_m": "AP_M",
    "mAP_l": "AP_L",
}
# Where a fine-tuning run keeps labels in a form of its own.
_LABELS = "labels"
# What must be equal for a run to be resumed,
_IDENTITY = (
    "config",
    "settings",
    "train",
    "val",
    "weights",
    "backbone_weights",
    "classes",
    "options",
    "global_batch",
)
# files by their content alone, wherever they lie now,
_WHERE_IT_LIES = ("train.file:", "val.file:", "weights.file:", "backbone_weights.file:")
# and but for these options,
_FREE_TO_CHANGE = ("workers", "eval_interval", "launcher", "channels_last")
# and where the folder says the batch of all ranks (older ones do not), that of one.
_OF_ONE_RANK = ("batch_size",)
_RUNS = count()
_NAMED = 20  # tensors that weights leave new


@dataclass(frozen=True)
class FinetuneResult:
    """figures: of the last evaluation, AP in per cent, empty without one. report: of the loaded weights, if any."""

    figures: dict[str, float]
    report: KeyReport | None
    results: Path


class LoadWeightsHook(Hook):
    """Puts weights into the model once it is initialised; a resumed run has its own."""

    priority = "VERY_HIGH"

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.report: KeyReport | None = None

    def before_train(self, runner: Runner) -> None:
        """Load by name and shape; the class predictor of other categories stays at its initial value."""
        if runner.iter:
            return
        self.report = report = load_into(_plain(runner.model), self.state)
        new = [*report.left_at_init[:_NAMED], *(["..."] if len(report.left_at_init) > _NAMED else [])]
        runner.logger.info(
            f"weights: {len(report.loaded)} tensors loaded, {len(report.left_at_init)} new"
            + "".join(f"\n  {name}" for name in new)
        )
        if report.unknown:
            runner.logger.warning(
                f"the weights hold {len(report.unknown)} tensors that this detector does not have, {report.unknown[0]} "
                "first: they are of another config. What has the same name and shape was loaded all the same, though "
                "it may have learned to work with what is missing here"
            )


class ResultsHook(Hook):
    """Writes results.json after every evaluation: what was run, on what, and the figures per epoch."""

    # After the other hooks' before_train: it may evaluate there.
    priority = "VERY_LOW"

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run = path, run
        self.epochs: list[dict[str, float]] = []

    def before_train(self, runner: Runner) -> None:
        """Take over the epochs of the run that is resumed; evaluate the last one if the kill came before that."""
        if runner.epoch and self.path.is_file():
            before = json.loads(self.path.read_text())["epochs"]
            # `evaluate` once wrote figures without an epoch here.
            self.epochs = [figures for figures in before if figures.get("epoch", math.inf) <= runner.epoch]
        if any_rank(is_main_process() and self._lacks(runner)):
            runner.val_loop.run()

    def _lacks(self, runner: Runner) -> bool:
        """Whether the loop would have evaluated the epoch that the run goes on from."""
        loop, epoch = runner.train_loop, runner.epoch
        due = epoch == loop.max_epochs or epoch % loop.val_interval == 0
        known = any(figures["epoch"] == epoch for figures in self.epochs)
        return runner.val_loop is not None and epoch > 0 and due and not known

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Append the figures and write the file."""
        self.epochs.append({"epoch": runner.epoch, **figures_of(metrics or {})})
        if is_main_process():
            write_results(self.path, self.run, self.epochs)


def finetune(
    stock: Config,
    train: Labels,
    val: Labels | None,
    weights: Path | None,
    work_dir: Path,
    options: FinetuneOptions,
    backbone_weights: Path | None = None,
) -> FinetuneResult:
    """Fine-tune ``stock`` on ``train``; resumes the run it finds in ``work_dir``.

    backbone_weights: the file that ``stock``'s backbone begins from, see backbones.plug; to tell runs apart.
    Raises AlignDetError when weights fit nothing beyond the backbone, ``val`` has boxes of a class that ``train`` has
    not, or ``work_dir`` holds another run.
    """
    explained = lost_ranks_explained(
        f"{work_dir} holds its last whole epoch, if there was one: the same command goes on from there"
    )
    with joined_processes(options.launcher), explained:
        return _finetune(stock, train, val, weights, work_dir, options, backbone_weights)


def _finetune(
    stock: Config,
    train: Labels,
    val: Labels | None,
    weights: Path | None,
    work_dir: Path,
    options: FinetuneOptions,
    backbone_weights: Path | None,
) -> FinetuneResult:
    file = read_file(weights) if weights is not None else None
    state = None if file is None else file.state
    val = matched(val, train.classes, work_dir / _LABELS) if val is not None else None
    config, chosen = finetune_config(
        stock,
        train,
        val,
        work_dir,
        options,
        # The paper's rates are for a pretrained neck and heads.
        pretrained=state is not None and not _only_backbone(state),
        world_size=get_world_size(),
    )
    run = _run_record(stock, train, val, weights, options, chosen, backbone_weights)
    last = _last_checkpoint(work_dir)
    if last is not None:
        _require_whole(last)
    require_one_start(work_dir, 0 if last is None else int("0" + "".join(filter(str.isdigit, last.stem))))
    if last is not None:
        run = _resumed(work_dir, run)
    config.resume = last is not None
    if last is not None or state is not None:
        config.load_from = None if last is None else str(last)
    if state is not None and any(name.startswith("backbone.") for name in state):
        _skip_downloads(config)
    if options.launcher != "none" and not torch.cuda.is_available():
        # mmengine's own choice names a GPU.
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
        }
    results = ResultsHook(work_dir / RESULTS, run)
    loader = LoadWeightsHook(state) if state is not None else None
    with DefaultScope.overwrite_default_scope("mmdet"):
        runner = _runner(config)
        put_equals_in_place(_plain(runner.model), samplers=False)
        if options.amp:
            keep_sensitive_float32(_plain(runner.model))
        order = ChannelsLastHook() if options.channels_last else None
        for hook in (StopAtNonFiniteHook(_advice(run["lr"], options)), results, loader, order):
            if hook is not None:
                runner.register_hook(hook)
        began = f"lr {run['lr']:g}, weight decay {run['weight_decay']:g}, as it began"
        remarks = (chosen.reason if last is None else began, chosen.left_out)
        other = other_model_warning(file, stock.model) if file is not None and last is None else None
        warnings = [*chosen.faults, *label_warnings(train, val), *([other] if other else [])]
        _tell(runner, [line for line in remarks if line], warnings)
        write_atomically(work_dir / _RUN, json.dumps(run, indent=1).encode())
        keep_freed_memory()
        with unreadable_image_named(), memory_blamed(), misfits_blamed(runner):
            runner.train()
    if val is None and is_main_process():
        write_results(results.path, run, [])
    figures = results.epochs[-1] if results.epochs else {}
    return FinetuneResult(figures, loader.report if loader else None, work_dir / RESULTS)


def _runner(config: Config) -> Runner:
    # mmengine writes the config with every checkpoint, and yapf takes a second to lay it out.
    object.__setattr__(config, "_format_python_code", False)
    if "experiment_name" not in config:
        # mmengine keeps logs by this name and the second: the next run of a process gets its own.
        config.experiment_name = f"{Path(config.filename or 'config').stem}_{next(_RUNS)}"
    return Runner.from_cfg(config)


def _tell(runner: Runner, remarks: list[str], warnings: list[str]) -> None:
    """Both in the log; warnings also where those of `evaluate` go, at any volume."""
    for line in remarks:
        runner.logger.info(line)
        say(line)
    for line in warnings:
        runner.logger.warning(line)
        warn(line)


def _advice(lr: float, options: FinetuneOptions) -> str:
    other = ", or without --amp" if options.amp else ""
    return f"Start again in a new --work-dir with a lower --lr (now {lr:g}){other}"


def _run_record(
    stock: Config,
    train: Labels,
    val: Labels | None,
    weights: Path | None,
    options: FinetuneOptions,
    chosen: Rates,
    backbone_weights: Path | None,
) -> dict[str, Any]:
    """What results.json says about the run, as plain JSON data."""
    settings = json.dumps(stock.to_dict(), sort_keys=True, default=str)
    backbone = {}
    if backbone_weights is not None:
        # By its content, wherever it lies.
        settings = settings.replace(json.dumps(str(backbone_weights))[1:-1], "")
        backbone = {"backbone_weights": _file_record(backbone_weights)}
    run = {
        "config": Path(stock.filename or "config").stem,
        "settings": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "train": _file_record(train.annotations),
        "val": _file_record(val.annotations) if val is not None else None,
        "weights": {"file": str(weights), "sha256": file_sha256(weights)} if weights else None,
        "classes": list(train.classes),
        "options": asdict(options),
        "global_batch": chosen.batch,
        "lr": chosen.lr,
        "weight_decay": chosen.weight_decay,
        "versions": {name: version(name) for name in ("torch", "mmdet", "mmengine")},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        **backbone,
    }
    return dict(json.loads(json.dumps(run)))


def _file_record(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": file_sha256(path)}


def evaluate(
    stock: Config, val: Labels, weights: Path, work_dir: Path, options: FinetuneOptions
) -> dict[str, float]:
    """COCO figures, in per cent, of a fine-tuned detector on ``val``; also written to ``work_dir/results.json``.

    Classes are numbered as the checkpoint says that it learned them. Raises AlignDetError when the weights do not fill
    the detector, as untrained parts make every figure meaningless, ``val`` has boxes of other classes, or ``work_dir``
    is that of a fine-tuning run, which has results of its own.
    """
    if (work_dir / _RUN).is_file():
        raise AlignDetError(
            f"{work_dir} holds a fine-tuning run, whose {RESULTS} would be lost: choose another --work-dir"
        )
    file = read_file(weights)
    learned = _classes_of(file)
    val = matched(val, learned or val.classes, work_dir / _LABELS)
    config, faults = evaluation_config(stock, val, work_dir, options)
    unsaid = None if learned else f"{weights} does not say its classes: taken to be {', '.join(val.classes)}"
    other = other_model_warning(file, stock.model)
    for line in (faults, unsaid, other, _other_size_warning(weights, options), *label_warnings(val)):
        if line is not None:
            warn(line)
    _skip_downloads(config)
    with DefaultScope.overwrite_default_scope("mmdet"):
        runner = _runner(config)
        report = load_into(runner.model, file.state)
        if report.left_at_init:
            raise AlignDetError(
                f"{weights} leaves {len(report.left_at_init)} tensors of the detector untrained, "
                f"{report.left_at_init[0]} first: fine-tune it (`aligndet finetune`), or name the config it was "
                "trained by"
            )
        if report.unknown:
            raise AlignDetError(
                f"{weights} holds {len(report.unknown)} tensors that the detector does not have, {report.unknown[0]} "
                "first: name the config it was trained by"
            )
        keep_freed_memory()
        with unreadable_image_named():
            figures = figures_of(runner.test())
    write_results(work_dir / RESULTS, {"weights": str(weights), "annotations": str(val.source)}, [figures])
    return figures


def load_into(model: torch.nn.Module, state: dict[str, Tensor]) -> KeyReport:
    """Load what fits by name and shape, and say what did not."""
    own = model.state_dict()
    state = {name: _for_all_classes(value, own.get(name)) for name, value in state.items()}
    report = key_report(state, own)
    if not report.beyond_backbone and not _only_backbone(state):
        raise AlignDetError(
            "the weights fit nothing of this detector beyond its backbone: they come from another config, from a "
            "pretraining run's last.pth, which `aligndet export` makes weights of, or are a backbone's alone, which "
            "fine-tuning takes as --backbone-weights. Name the config they were made for"
        )
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    return report


def _classes_of(file: WeightsFile) -> tuple[str, ...] | None:
    """The classes a checkpoint of mmengine says that it learned, in its order; None where it says nothing."""
    meta = file.content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    noted = meta.get("dataset_meta")
    # The second as mmdet 2 wrote it.
    found = noted.get("classes") if isinstance(noted, Mapping) else meta.get("CLASSES")
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else None


def _other_size_warning(weights: Path, options: FinetuneOptions) -> str | None:
    """Whether the run that ``weights`` are of saw its images at another --image-size."""
    try:
        run = json.loads((weights.parent / _RUN).read_bytes())
        size = run["options"]["image_size"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if size is None or tuple(size) == options.image_size:
        return None
    return f"{weights} was fine-tuned with --image-size {size[0]}x{size[1]}: its AP is another at other sizes"


def _for_all_classes(value: Tensor, own: Tensor | None) -> Tensor:
    """A box regressor that `export` repeated for every class of one config, for as many as another has."""
    if own is None or value.shape == own.shape or value.ndim == 0 or len(value) % 4:
        return value
    of_class = value.reshape(-1, 4, *value.shape[1:])
    return repeated_regressor(value[:4], own) if bool((of_class == of_class[:1]).all()) else value


def _only_backbone(state: dict[str, Tensor]) -> bool:
    return all(name.startswith("backbone.") for name in state)


def figures_of(metrics: dict[str, float]) -> dict[str, float]:
    """CocoMetric's dictionary as AP, AP50, AP75, AP_S, AP_M, AP_L in per cent; -1 where nothing is of that size.

    It returns nothing at all when the detector found no box, which is an AP of zero.
    """
    if not metrics:
        return dict.fromkeys(_FIGURES.values(), 0.0)
    named = {name.split("/")[-1].removeprefix("bbox_"): value for name, value in metrics.items()}
    return {
        short: round(100 * named[long], 2) if named[long] >= 0 else -1.0
        for long, short in _FIGURES.items()
        if long in named
    }


def write_results(path: Path, run: dict[str, Any], epochs: list[dict[str, float]]) -> None:
    """``results.json``: {"run": ..., "epochs": [...], "last": the last of them}."""
    content = {"run": run, "epochs": epochs, "last": epochs[-1] if epochs else {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1).encode())


def _plain(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model  # type: ignore[return-value]


def _skip_downloads(config: Config) -> None:
    # The backbone's weights are about to be overwritten: fetching others first would be in vain, or fail.
    backbone = config.model.backbone
    names = ("init_cfg", "pretrained", *(("weights",) if class_name(backbone.type) == "TimmBackbone" else ()))
    for name in names:
        backbone.pop(name, None)


def _last_checkpoint(work_dir: Path) -> Path | None:
    """What to go on from. mmengine writes its whole path down, which is wrong once the folder has moved."""
    note = work_dir / "last_checkpoint"
    if not note.is_file():
        return None
    name = Path(note.read_text().strip()).name
    if not name:  # mmengine empties it before it writes, once the checkpoint itself is whole
        return _newest_epoch(work_dir)
    path = work_dir / name
    if not path.is_file():
        raise AlignDetError(
            f"{note} names {path.name}, which is gone: the run cannot go on. Choose a new --work-dir, or write the "
            "name of a checkpoint that is there into it"
        )
    return path


def _require_whole(checkpoint: Path) -> None:
    """Raise AlignDetError, with the way on, when ``checkpoint`` is damaged: mmengine writes it in place."""
    try:
        read_file(checkpoint)
    except AlignDetError as error:
        before = _newest_epoch(checkpoint.parent, but=checkpoint)
        note = checkpoint.parent / "last_checkpoint"
        way = "Choose a new --work-dir"
        if before is not None:
            way = f"To go on from the one before, write {before.name} into {note}"
        raise AlignDetError(f"the run cannot go on from its last checkpoint: {error}. {way}") from error


def _newest_epoch(work_dir: Path, but: Path | None = None) -> Path | None:
    found = (path for path in work_dir.glob("epoch_*.pth") if path != but)
    return max(found, key=lambda path: int(path.stem[6:]), default=None)


def _resumed(work_dir: Path, run: dict[str, Any]) -> dict[str, Any]:
    """``run`` with the rates it began with, which mmengine restores. Raises AlignDetError when it is another run."""
    path = work_dir / _RUN
    if not path.is_file():
        return run
    saved = json.loads(path.read_text())
    names = [name for name in _IDENTITY if name in saved]
    before, now = ({name: content[name] for name in names} for content in (saved, run))
    options = _FREE_TO_CHANGE + (_OF_ONE_RANK if "global_batch" in saved else ())
    free = (*_WHERE_IT_LIES, *(f"options.{name}:" for name in options))
    different = [line for line in identity_difference(before, now) if not line.startswith(free)]
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise AlignDetError(f"{work_dir} holds another run:{lines}\nChoose a new --work-dir")
    return {**run, **{name: saved[name] for name in ("lr", "weight_decay") if name in saved}}
