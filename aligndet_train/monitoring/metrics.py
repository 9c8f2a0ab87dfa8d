"""Every step's figures, as JSON lines and for TensorBoard."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from aligndet_train.detectors.query import QueryAdapter
from aligndet_train.distributed import unwrapped
from proposals.dataset.files import write_atomically

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsHook(Hook):
    """Write ``metrics.jsonl``, one object a step, and the same figures into the folder ``tensorboard``.

    Beside what the log shows: ``positives_per_image``, of one decoder layer, and ``data_wait_share``, the part of a
    step that was spent waiting for images. A resumed run goes on after the lines of the steps before it. Where
    tensorboard is not installed, only the lines are written.
    """

    # After all that set figures.
    priority = "LOW"

    def __init__(self, folder: Path, start_step: int) -> None:
        self.folder, self.start_step = folder, start_step
        self._lines: IO[str] | None = None
        self._board: Any = None

    def before_train(self, runner: Runner) -> None:
        """Drop what a killed run wrote beyond the checkpoint, and open both."""
        if not is_main_process():
            return
        path = self.folder / METRICS
        kept = lines_before(path, self.start_step) if self.start_step else []
        write_atomically(path, "".join(kept).encode())
        self._lines = path.open("a", buffering=1)
        if find_spec("tensorboard") is None:
            runner.logger.info("tensorboard is not installed: figures go to metrics.jsonl only")
            return
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=self.start_step + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Write the step's figures; RuntimeInfoHook has brought them to the host already."""
        if self._lines is None:
            return
        figures = step_figures(runner, len(data_batch or ()))
        self._lines.write(json.dumps({"step": runner.iter + 1, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Close both."""
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()


def step_figures(runner: Runner, images: int) -> dict[str, float]:
    """The current value of everything that was logged in this step, and what follows from it."""
    scalars = runner.message_hub.log_scalars
    figures = {
        name.removeprefix("train/"): float(buffer.current())
        for name, buffer in scalars.items()
        if name.startswith("train/")
    }
    norm = gradient_norm(runner)
    if norm is not None:
        figures["grad_norm"] = norm
    if images and "positives" in figures:
        figures["positives_per_image"] = figures["positives"] / images / layers_counted(runner)
    if figures.get("time"):
        figures["data_wait_share"] = min(1.0, figures.get("data_time", 0.0) / figures["time"])
    return figures


def layers_counted(runner: Runner) -> int:
    """The decoder layers whose boxes ``positives`` counts together; 1 unless the detector has queries."""
    model = unwrapped(runner.model)
    return len(model.student.decoder.layers) if isinstance(model.adapter, QueryAdapter) else 1


def gradient_norm(runner: Runner) -> float | None:
    """The norm of the step's gradient before it was clipped; None where gradients are not clipped."""
    wrapper = runner.optim_wrapper
    # The wrapper is older than the runner, and so has a message hub of its own.
    norm = wrapper.message_hub.log_scalars.get("train/grad_norm") if wrapper.clip_grad_kwargs else None
    return None if norm is None else float(norm.current())


def lines_before(path: Path, step: int) -> list[str]:
    """The lines of ``path`` up to and including ``step``; a line that a kill cut off is left out."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    return kept
