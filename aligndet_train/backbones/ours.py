"""The backbone file that `aligndet pretrain-backbone` leaves, and backbones inside its checkpoints."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aligndet_train.checkpoint import decoded, disk_blamed, encoded
from proposals.dataset.files import publish, temporary_beside

STAGE = "image-domain"
BACKBONE_FILE = "backbone.pth"
FORMAT = 1
_MARK = "aligndet_backbone"


def write_backbone(checkpoint: Mapping[str, Any], out: Path) -> None:
    """Write ``out`` atomically from an image-domain checkpoint, as load_checkpoint returns it.

    {"aligndet_backbone": 1, "state_dict": the backbone's own names, "meta": JSON of its config, its inputs' mean, std
    and channel order, the method and the steps}. Raises AlignDetError when the disk does not take it.
    """
    identity = checkpoint["identity"]
    meta = {name: identity[name] for name in ("method", "backbone", "inputs")} | {"step": checkpoint["step"]}
    content = {_MARK: FORMAT, "state_dict": _inside(checkpoint["model"]), "meta": encoded(meta)}
    with temporary_beside(out) as (temporary,), disk_blamed(out):
        with temporary.open("wb") as file:
            torch.save(content, file)
        publish(temporary, out)


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether a loaded file is a backbone.pth or an image-domain last.pth of ours."""
    if _MARK in content:
        return True
    identity = content.get("identity")
    return isinstance(identity, str) and decoded(identity).get("stage") == STAGE


def read_ours(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state, meta) of either file; meta as in ``write_backbone``."""
    if _MARK in content:
        return dict(content["state_dict"]), _checked(decoded(content["meta"]))
    identity = decoded(content["identity"])
    meta = {name: identity[name] for name in ("method", "backbone", "inputs")} | {"step": content["step"]}
    return _inside(content["model"]), _checked(meta)


def _checked(meta: dict[str, Any]) -> dict[str, Any]:
    """``meta``; raises ValueError or a LookupError when what is used of it is not what it should be."""
    inputs, style = meta["inputs"], meta["backbone"].get("style", "pytorch")
    numbers = [float(value) for name in ("mean", "std") for value in inputs[name]]
    plain = isinstance(meta["step"], int) and isinstance(inputs["bgr_to_rgb"], bool)
    if (
        not plain
        or len(numbers) != 6
        or not all(map(math.isfinite, numbers))
        or style not in ("pytorch", "caffe")
    ):
        raise ValueError("its meta is none of ours")
    return meta


def _inside(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "backbone."
    return {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
