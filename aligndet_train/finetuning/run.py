"""Fine-tune and evaluate: mmengine's Runner, whose checkpoints resume and whose figures become one JSON file."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from aligndet_train.backbones.files import read_file
from aligndet_train.checkpoint import identity_difference
from aligndet_train.export import KeyReport, key_report
from aligndet_train.finetuning.labels import Labels
from aligndet_train.finetuning.recipe import FinetuneOptions, finetune_config, set_evaluation
from proposals.dataset.files import file_sha256, write_atomically
from proposals.errors import AlignDetError

RESULTS = "results.json"
# CocoMetric's names, as papers write them.
_FIGURES = {
    "mAP": "AP",
    "mAP_50": "AP50",
    "mAP_75": "AP75",
    "mAP_s": "AP_S",
    "mAP_m": "AP_M",
    "mAP_l": "AP_L",
}
# Options of which a resumed run may have others.
_FREE_TO_CHANGE = ("workers", "eval_interval", "launcher")


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
        if runner.iter == 0:
            self.report = load_into(_plain(runner.model), self.state)


class ResultsHook(Hook):
    """Writes results.json after every evaluation: what was run, on what, and the figures per epoch."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run = path, run
        self.epochs: list[dict[str, float]] = []

    def before_train(self, runner: Runner) -> None:
        """Take over the epochs of the run that is resumed."""
        if runner.epoch and self.path.is_file():
            before = json.loads(self.path.read_text())["epochs"]
            self.epochs = [figures for figures in before if figures["epoch"] <= runner.epoch]

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
) -> FinetuneResult:
    """Fine-tune ``stock`` on ``train``; resumes the run it finds in ``work_dir``.

    Raises AlignDetError when weights fit nothing beyond the backbone, or ``work_dir`` holds another run.
    """
    state = read_file(weights).state if weights is not None else None
    config, chosen = finetune_config(stock, train, val, work_dir, options, pretrained=state is not None)
    run = {
        "config": Path(stock.filename or "config").stem,
        "weights": {"file": str(weights), "sha256": file_sha256(weights)} if weights else None,
        "classes": list(train.classes),
        "options": asdict(options),
        "lr": chosen.lr,
        "weight_decay": chosen.weight_decay,
        "versions": {name: version(name) for name in ("torch", "mmdet", "mmengine")},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
    }
    run = json.loads(json.dumps(run))
    _refuse_other_run(work_dir, run)
    config.resume = (work_dir / "last_checkpoint").is_file()
    if state is not None and any(name.startswith("backbone.") for name in state):
        _skip_downloads(config)
    results = ResultsHook(work_dir / RESULTS, run)
    loader = LoadWeightsHook(state) if state is not None else None
    with DefaultScope.overwrite_default_scope("mmdet"):
        runner = Runner.from_cfg(config)
        for hook in (results, loader):
            if hook is not None:
                runner.register_hook(hook)
        runner.logger.info(chosen.reason)
        write_atomically(work_dir / "run.json", json.dumps(run, indent=1).encode())
        runner.train()
    figures = results.epochs[-1] if results.epochs else {}
    return FinetuneResult(figures, loader.report if loader else None, work_dir / RESULTS)


def evaluate(
    stock: Config, val: Labels, weights: Path, work_dir: Path, options: FinetuneOptions
) -> dict[str, float]:
    """COCO figures, in per cent, of a fine-tuned detector on ``val``; also written to ``work_dir/results.json``.

    Raises AlignDetError when the weights do not fill the detector: untrained parts make every figure meaningless.
    """
    state = read_file(weights).state
    config, _ = finetune_config(stock, val, val, work_dir, options, pretrained=False)
    _skip_downloads(config)
    set_evaluation(config, val, options)
    for part in (
        "train_dataloader",
        "train_cfg",
        "optim_wrapper",
        "param_scheduler",
        "val_dataloader",
        "val_cfg",
        "val_evaluator",
    ):
        config[part] = None
    with DefaultScope.overwrite_default_scope("mmdet"):
        runner = Runner.from_cfg(config)
        report = load_into(runner.model, state)
        if report.left_at_init:
            raise AlignDetError(
                f"{weights} leaves {len(report.left_at_init)} tensors of the detector untrained, "
                f"{report.left_at_init[0]} first: fine-tune it (`aligndet finetune`), or name the config it was "
                "trained by"
            )
        figures = figures_of(runner.test())
    write_results(
        work_dir / RESULTS, {"weights": str(weights), "annotations": str(val.annotations)}, [figures]
    )
    return figures


def load_into(model: torch.nn.Module, state: dict[str, Tensor]) -> KeyReport:
    """Load what fits by name and shape, and say what did not."""
    own = model.state_dict()
    report = key_report(state, own)
    if not report.beyond_backbone and not all(name.startswith("backbone.") for name in state):
        raise AlignDetError(
            "the weights fit nothing of this detector beyond its backbone: they come from another config, or from a "
            "pretraining run's last.pth, which `aligndet export` makes weights of. Name the config they were made for"
        )
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    return report


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
    # The backbone's weights are about to be overwritten: fetching others first would be in vain.
    config.model.backbone.pop("init_cfg", None)


def _refuse_other_run(work_dir: Path, run: dict[str, Any]) -> None:
    path = work_dir / "run.json"
    if not path.is_file():
        return
    names = ("config", "weights", "classes", "options")
    before, now = (
        {name: content.get(name) for name in names} for content in (json.loads(path.read_text()), run)
    )
    free = tuple(f"options.{name}:" for name in _FREE_TO_CHANGE)
    different = [line for line in identity_difference(before, now) if not line.startswith(free)]
    if different and (work_dir / "last_checkpoint").is_file():
        lines = "".join(f"\n  {line}" for line in different)
        raise AlignDetError(f"{work_dir} holds another run:{lines}\nChoose a new --work-dir")
