"""What every kind of run has: its length, what it continues, where it works, and how its state is restored."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aligndet_train.checkpoint import LAST, as_damage
from aligndet_train.distributed import spread_over_hosts
from aligndet_train.run_options import RunOptions
from aligndet_train.stream import StreamState
from proposals.dataset import ProposalDataset
from proposals.errors import AlignDetError

# Of a digest: what an int64 holds.
_DIGITS = 15


@dataclass(frozen=True, kw_only=True)
class ResumablePlan:
    """A run made definite. identity: what must be equal to continue it; saved: the checkpoint it continues."""

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

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the state that the run continues, if any. Raises AlignDetError when it does not fit."""
        if self.saved:
            with as_damage(self.work_dir / LAST):
                model.load_state_dict(self.saved["model"])
                optimizer.load_state_dict(self.saved["optimizer"])


def require_one_start(work_dir: Path, start: int) -> None:
    """Every rank must call it, with the step or epoch it would go on from. Raises AlignDetError when these differ."""
    if spread_over_hosts(start):
        raise AlignDetError(
            f"the ranks do not see the same checkpoint in {work_dir} (here: number {start}): put --work-dir on a file "
            "system that all nodes share"
        )


def require_one_dataset(dataset: ProposalDataset) -> None:
    """Every rank must call it: raises AlignDetError when they have not all opened the same dataset.

    Each would cut its share out of another order: images twice, others never.
    """
    if spread_over_hosts(int(dataset_identity(dataset)["manifest"][:_DIGITS], 16)):
        raise AlignDetError(
            f"the ranks do not see the same dataset at {dataset.root} (here: {len(dataset):,} images): bring its "
            "copies on all nodes to the same state, or start again once nobody changes it"
        )


def dataset_identity(dataset: ProposalDataset) -> dict[str, Any]:
    """What makes ``dataset`` the one that a run began with: its images, and a digest of its manifest."""
    # Consolidating a dataset copies its boxes and changes none.
    manifest = dataset.manifest.model_copy(update={"consolidated": ()})
    digest = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
    return {"images": len(dataset), "manifest": digest}
