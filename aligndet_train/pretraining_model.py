"""What the models of both stages have in common."""

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor

from aligndet_train.distributed import averaged_figures

Losses = dict[str, Any]
"""By name, each a tensor or a list of them (of levels, of stages)."""


class PretrainingModel(BaseModel):
    """Predicts nothing: it has losses alone."""

    def parse_losses(self, losses: Losses) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank, to go back through; and for log and monitors, all figures averaged over the ranks."""
        loss, figures = super().parse_losses(losses)
        return loss, averaged_figures(figures)


def require_losses(mode: str) -> None:
    """Raise ValueError for another ``mode`` of ``forward`` than "loss"."""
    if mode != "loss":
        raise ValueError(f"a pretraining model only computes losses, not {mode!r}")
