"""From a pretraining checkpoint to weights the stock detector loads, with an account of every key."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from aligndet_train.box_domain import build_detector
from aligndet_train.checkpoint import disk_blamed, load_checkpoint
from aligndet_train.config import head_type
from aligndet_train.detectors import adapter_for
from aligndet_train.detectors.adapter import FamilyAdapter
from aligndet_train.plain_config import require_registered
from proposals.dataset.files import temporary_beside
from proposals.errors import AlignDetError

State = dict[str, Tensor]


@dataclass(frozen=True)
class KeyReport:
    """What a stock detector does with exported weights; every stock key is in exactly one of the first two.

    unexpected: what does not fit, by name or by shape.
    """

    loaded: tuple[str, ...]
    left_at_init: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def beyond_backbone(self) -> bool:
        """Whether anything but the backbone was loaded."""
        return any(not name.startswith("backbone.") for name in self.loaded)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the detector has no tensor for, of whatever shape."""
        own = set(self.left_at_init)
        return tuple(name for name in self.unexpected if name not in own)

    def table(self) -> Table:
        """Counts per part of the detector, and by name what was left at its initial value."""
        table = Table(title="Exported weights in the stock detector")
        for column in ("part", "loaded", "left at init", "unexpected"):
            table.add_column(column, justify="left" if column == "part" else "right")
        groups = (self.loaded, self.left_at_init, self.unexpected)
        for part in sorted({name.split(".")[0] for group in groups for name in group}):
            table.add_row(part, *(str(sum(n.split(".")[0] == part for n in group)) for group in groups))
        return table


def exported_state(checkpoint: dict[str, Any], *, keep_predictors: bool) -> tuple[State, State]:
    """(exported, stock): weights under stock names, and the freshly built stock detector's own.

    checkpoint: what load_checkpoint returns. The unsupervised head is never exported, nor what predicts clusters; the
    final box predictors only with ``keep_predictors``. Raises AlignDetError for a backbone's checkpoint.
    """
    model = checkpoint["identity"].get("stock_model")
    if model is None:
        raise AlignDetError(
            "this checkpoint is of `aligndet pretrain-backbone`: it holds no detector. Give it to "
            "`aligndet pretrain --backbone-weights`, and export that run's last.pth"
        )
    adapter, stock = _stock(model)
    left_out = adapter.embedding_layers + adapter.untrained + adapter.cluster_layers
    if not keep_predictors:
        left_out += adapter.predictors
    exported: State = {}
    for name, value in checkpoint["model"].items():
        stock_name = name.removeprefix("student.")
        if stock_name == name or stock_name.startswith(left_out):
            continue
        fitting = (
            adapter.to_stock_shape(stock_name, value, stock[stock_name]) if stock_name in stock else value
        )
        if fitting is not None:
            exported[stock_name] = fitting.contiguous()
    return exported, stock


def _stock(model: Any) -> tuple[FamilyAdapter, State]:
    try:
        require_registered(model, "the detector's config in this checkpoint")
        return adapter_for(model["type"], head_type(model)), build_detector(model).state_dict()
    except AlignDetError:
        raise
    except Exception as error:  # a damaged config fails wherever in mmdet it happens to lead to
        raise AlignDetError(
            f"the detector's config in this checkpoint builds none ({type(error).__name__}: {error}): it is damaged"
        ) from error


def key_report(exported: State, stock: State) -> KeyReport:
    """Compare by name and shape, as ``load_state_dict(strict=False)`` does."""
    fits = {name for name in exported.keys() & stock.keys() if exported[name].shape == stock[name].shape}
    return KeyReport(
        loaded=tuple(name for name in stock if name in fits),
        left_at_init=tuple(name for name in stock if name not in fits),
        unexpected=tuple(name for name in exported if name not in fits),
    )


def export(checkpoint_path: Path, out: Path, *, keep_predictors: bool = False) -> KeyReport:
    """Write ``out`` (.safetensors, or .pth with a ``state_dict``) for the stock config the run started from.

    Raises AlignDetError for another extension or an unreadable checkpoint.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    exported, stock = exported_state(checkpoint, keep_predictors=keep_predictors)
    write_weights(exported, out, checkpoint)
    return key_report(exported, stock)


def write_weights(state: State, out: Path, checkpoint: dict[str, Any]) -> None:
    """Write ``state`` as a .safetensors file, or a .pth with a ``state_dict``, whole or not at all.

    checkpoint: it came from; named in the file's metadata. Raises AlignDetError for another extension.
    """
    if out.suffix not in {".safetensors", ".pth"}:
        raise AlignDetError(f"cannot export to {out}: the extension must be .safetensors or .pth")
    identity = checkpoint["identity"]
    meta = {
        "config": str(identity.get("config")),
        "step": str(checkpoint["step"]),
        "format": "pt",
        "stock_model": json.dumps(identity["stock_model"]),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out) as (temporary,), disk_blamed(out):
        if out.suffix == ".safetensors":
            # Layers of one weight under several names (Deformable DETR, RTMDet): the format wants each name its own.
            state = {name: value.clone() for name, value in state.items()}
            save_file(state, temporary, metadata=meta)
        else:
            # An open file: of a path torch hides why it cannot be written.
            with temporary.open("wb") as file:
                torch.save({"state_dict": state, "meta": meta}, file)
        temporary.replace(out)
