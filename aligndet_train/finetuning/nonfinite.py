"""A fine-tuning loss that is not a number ends the run: its weights are not numbers either from then on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from aligndet_train.distributed import any_rank
from aligndet_train.monitoring.nonfinite import NonFiniteLossError, all_finite, not_finite


class StopAtNonFiniteHook(Hook):
    """Stop every rank at the first loss that is NaN or infinite, and before weights that are so become a checkpoint.

    advice: what the user should do, a sentence.
    """

    # After RuntimeInfoHook, which waits for the figures; before the progress line and the checkpoint.
    priority = "HIGH"

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at the losses. Raises NonFiniteLossError naming them, the images and what to change."""
        what = not_finite({name: _number(value) for name, value in (outputs or {}).items() if "loss" in name})
        # Gradients are averaged over ranks: what is no number on one has reached the weights of all.
        if any_rank(bool(what)):
            images = image_paths(data_batch) if what else []
            named = f" (images {', '.join(images)})" if images else ""
            self._stop(runner.iter + 1, (what or "a loss of another rank is not finite") + named)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the weights, which mmengine saves next. Raises NonFiniteLossError."""
        if not all_finite(runner.model.parameters()):
            self._stop(runner.iter, "the update made weights that are not finite")

    def _stop(self, step: int, what: str) -> None:
        raise NonFiniteLossError(f"step {step}: {what}. {self.advice}")


def image_paths(batch: Any) -> list[str]:
    """Of the images of a batch as mmdet's collate functions make them; those that are not named are left out."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    if not isinstance(samples, Sequence):
        return []
    paths = [getattr(sample, "img_path", None) for sample in samples]
    return [str(path) for path in paths if path is not None]


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
