"""Fine-tune: mmengine's Runner, whose checkpoints resume and whose figures become one JSON file."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from aligndet_train.allocator import keep_freed_memory
from aligndet_train.backbones.files import read_file
from aligndet_train.console import say, warn
from aligndet_train.detectors.float32 import keep_sensitive_float32
from aligndet_train.distributed import joined_processes, lost_ranks_explained, unwrapped
from aligndet_train.equals import put_equals_in_place
from aligndet_train.export import KeyReport
from aligndet_train.finetuning.engine import new_runner
from aligndet_train.finetuning.label_warnings import label_warnings
from aligndet_train.finetuning.labels import LABELS, Labels, matched
from aligndet_train.finetuning.loading import LoadWeightsHook, only_backbone, skip_downloads
from aligndet_train.finetuning.nonfinite import StopAtNonFiniteHook
from aligndet_train.finetuning.other_model import other_model_warning
from aligndet_train.finetuning.recipe import FinetuneOptions, Rates, finetune_config
from aligndet_train.finetuning.results import RESULTS, ResultsHook, write_results
from aligndet_train.finetuning.resume import RUN, last_checkpoint, require_whole, resumed
from aligndet_train.finetuning.unreadable import unreadable_image_named
from aligndet_train.loop import memory_blamed
from aligndet_train.memory_order import ChannelsLastHook
from aligndet_train.misfits import misfits_blamed
from aligndet_train.resumable import require_one_start
from proposals.dataset.files import file_sha256, write_atomically


@dataclass(frozen=True)
class FinetuneResult:
    """figures: of the last evaluation, AP in per cent, empty without one. report: of the loaded weights, if any."""

    figures: dict[str, float]
    report: KeyReport | None
    results: Path


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
    val = matched(val, train.classes, work_dir / LABELS) if val is not None else None
    config, chosen = finetune_config(
        stock,
        train,
        val,
        work_dir,
        options,
        # The paper's rates are for a pretrained neck and heads.
        pretrained=state is not None and not only_backbone(state),
        world_size=get_world_size(),
    )
    run = _run_record(stock, train, val, weights, options, chosen, backbone_weights)
    last = last_checkpoint(work_dir)
    if last is not None:
        require_whole(last)
    require_one_start(work_dir, 0 if last is None else int("0" + "".join(filter(str.isdigit, last.stem))))
    if last is not None:
        run = resumed(work_dir, run)
    config.resume = last is not None
    if last is not None or state is not None:
        config.load_from = None if last is None else str(last)
    if state is not None and any(name.startswith("backbone.") for name in state):
        skip_downloads(config)
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
        runner = new_runner(config)
        put_equals_in_place(unwrapped(runner.model), samplers=False)
        if options.amp:
            keep_sensitive_float32(unwrapped(runner.model))
        order = ChannelsLastHook() if options.channels_last else None
        for hook in (StopAtNonFiniteHook(_advice(run["lr"], options)), results, loader, order):
            if hook is not None:
                runner.register_hook(hook)
        began = f"lr {run['lr']:g}, weight decay {run['weight_decay']:g}, as it began"
        remarks = (chosen.reason if last is None else began, chosen.left_out)
        other = other_model_warning(file, stock.model) if file is not None and last is None else None
        warnings = [*chosen.faults, *label_warnings(train, val), *([other] if other else [])]
        _tell(runner, [line for line in remarks if line], warnings)
        write_atomically(work_dir / RUN, json.dumps(run, indent=1).encode())
        keep_freed_memory()
        with unreadable_image_named(), memory_blamed(), misfits_blamed(runner):
            runner.train()
    if val is None and is_main_process():
        write_results(results.path, run, [], [])
    figures = results.epochs[-1] if results.epochs else {}
    return FinetuneResult(figures, loader.report if loader else None, work_dir / RESULTS)


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
