"""A loss that is not a number stops the run, with the batch that did it on disk."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from safetensors.torch import save_file
from torch import Tensor, nn

from aligndet_train.checkpoint import LAST, disk_blamed
from aligndet_train.monitoring.metrics import gradient_norm
from aligndet_train.stream import Sample
from proposals.errors import AlignDetError

FOLDER = "nonfinite"
ADVICE = (
    "Lower the learning rate (--cfg-options pretrain.optimizer.lr=...), clip gradients (pretrain.clip_grad=...), or "
    "train without --amp, in a new --work-dir"
)


class NonFiniteLossError(AlignDetError):
    """The loss or its gradient became NaN or infinite."""


class NonFiniteHook(Hook):
    """Stop at the first loss, or clipped gradient's norm, that is NaN or infinite, before a checkpoint is written.

    The step's batch goes to ``FOLDER/step_NNNNNN.safetensors`` (``image_i`` [3, H, W] uint8 BGR, ``boxes_i``,
    ``classes_i``) and ``.json`` (keys, epoch and index of its images, losses): with the last checkpoint the step
    can be done again. advice: what the user should do, a sentence.
    """

    # After RuntimeInfoHook, which waits for the figures; before anything is logged or saved.
    priority = "HIGH"

    def __init__(self, folder: Path, advice: str = ADVICE) -> None:
        self.folder, self.advice = folder, advice

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at the figures. Raises NonFiniteLossError naming figures, images and files."""
        figures = {name: float(value) for name, value in (outputs or {}).items()}
        norm = gradient_norm(runner)
        if norm is not None:
            figures["grad_norm"] = norm
        if what := not_finite(figures):
            saved = self._saved(runner.iter + 1, data_batch, figures)
            keys = ", ".join(sample.key for sample in data_batch)
            before = (
                f"the checkpoint, {LAST}, is of a step before it"
                if (self.folder / LAST).exists()
                else "there is no checkpoint yet"
            )
            raise NonFiniteLossError(
                f"step {runner.iter + 1}: {what}. The batch {saved} (images {keys}); {before}. {self.advice}"
            )

    def _saved(self, step: int, samples: Sequence[Sample], figures: dict[str, float]) -> str:
        """Where the batch is, in words: a full disk must not hide why the run ends."""
        try:
            with disk_blamed(self.folder / FOLDER):
                return f"is in {save_batch(self.folder / FOLDER, step, samples, figures)}"
        except OSError as error:
            return f"could not be written ({error.filename}: {error.strerror})"


def require_finite(model: nn.Module, advice: str) -> None:
    """Raises NonFiniteLossError when a trained weight is NaN or infinite. A finite loss may have such a gradient."""
    if not all_finite(p for p in model.parameters() if p.requires_grad):
        raise NonFiniteLossError(
            f"an update made weights that are not finite: they are not saved, a checkpoint of before stays. {advice}"
        )


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element of any is NaN or infinite; one wait for the device."""
    finite = [tensor.isfinite().all() for tensor in tensors]
    return not finite or bool(torch.stack(finite).all())


def not_finite(figures: Mapping[str, float]) -> str:
    """Those that are NaN or infinite, in words; empty when there are none."""
    return ", ".join(f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value))


def save_batch(folder: Path, step: int, samples: Sequence[Sample], figures: dict[str, float]) -> Path:
    """Write ``samples`` and ``figures`` of this rank; returns the path of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = f"_rank{get_rank()}" if get_rank() else ""
    path = folder / f"step_{step:06d}{rank}.safetensors"
    tensors = {}
    for i, sample in enumerate(samples):
        parts = {"image": sample.image, "boxes": sample.boxes, "classes": sample.classes}
        # Copies, as the samples of a batch may be pieces of one tensor, which the format does not store.
        for name, part in parts.items():
            tensors[f"{name}_{i}"] = part.cpu().clone(memory_format=torch.contiguous_format)
    save_file(tensors, path)
    facts = {
        "step": step,
        "images": [{"key": s.key, "epoch": s.epoch, "index": s.index} for s in samples],
        # JSON has no NaN: as words.
        "figures": {name: value if math.isfinite(value) else str(value) for name, value in figures.items()},
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    return path
