"""A fine-tuning loss that is not a number ends the run: its weights are not numbers either from then on."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from aligndet_train.monitoring.nonfinite import NonFiniteLossError, not_finite


class StopAtNonFiniteHook(Hook):
    """Stop at the first loss that is NaN or infinite; the checkpoint of the epoch before stays the last one."""

    # After RuntimeInfoHook, which waits for the figures; before the progress line and the checkpoint.
    priority = "HIGH"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at the figures. Raises NonFiniteLossError naming them, the images and what to change."""
        figures = {name: value.item() for name, value in (outputs or {}).items() if isinstance(value, Tensor)}
        if what := not_finite(figures):
            images = ", ".join(str(sample.img_path) for sample in (data_batch or {}).get("data_samples", ()))
            raise NonFiniteLossError(
                f"step {runner.iter + 1}: {what} (images {images}). Start again in a new --work-dir with a lower --lr, "
                "with more --epochs (a tenth of them is warm-up), or without --amp"
            )
