"""results.json: what was run, and COCO's figures after every evaluation."""

import json
import math
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from aligndet_train.distributed import any_rank
from aligndet_train.finetuning.coco_ap import ClassFigures, of_classes
from proposals.dataset.files import write_atomically

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
            before = json.loads(self.path.read_text())
            # `evaluate` once wrote figures without an epoch here.
            self.epochs = [
                figures for figures in before["epochs"] if figures.get("epoch", math.inf) <= runner.epoch
            ]
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
            write_results(self.path, self.run, self.epochs, of_classes(runner.val_evaluator))


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


def write_results(
    path: Path, run: dict[str, Any], epochs: list[dict[str, float]], classes: list[ClassFigures]
) -> None:
    """``results.json``: {"run": ..., "epochs": [...], "last": the last of them, "classes": that by class}."""
    content = {"run": run, "epochs": epochs, "last": epochs[-1] if epochs else {}, "classes": classes}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1).encode())
