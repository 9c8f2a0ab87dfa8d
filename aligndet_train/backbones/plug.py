"""Putting a weights file into a detector's backbone: names, normalisation and style that go with it, all or nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor

from aligndet_train.backbones.convert import Converted, convert
from aligndet_train.backbones.registry import IMAGENET
from aligndet_train.backbones.scheme import SCHEME
from aligndet_train.backbones.weights import flat_name
from proposals.errors import AlignDetError

# Not in every file, and filled without it: counters, buffers of known content, norms that detection adds to Swin.
_OPTIONAL = ("num_batches_tracked", "relative_position_index")
_DETECTION_NORMS = ("norm0.", "norm1.", "norm2.")


@dataclass(frozen=True)
class Fit:
    """How a file's tensors meet a backbone's: every key of the backbone is in one of the first three.

    loaded, missing, left_at_init (which may be missing), mismatched ("name: shape in the file, shape wanted"),
    unexpected: names of the backbone's class.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_at_init: tuple[str, ...]
    mismatched: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing that has to be there is missing or of another shape."""
        return bool(self.loaded) and not self.missing and not self.mismatched


def fit(converted: Converted, backbone: Mapping[str, Any]) -> Fit:
    """Compare with the mmdet ``backbone`` config. Raises AlignDetError when that cannot be built."""
    given = converted.for_backbone(backbone["type"])
    wanted = _wanted(backbone)
    if backbone["type"] == "TimmBackbone":  # whose modules are renamed when timm wraps them
        given, wanted = (
            {flat_name(name): value for name, value in state.items()} for state in (given, wanted)
        )
    loaded: list[str] = []
    missing: list[str] = []
    optional: list[str] = []
    mismatched: list[str] = []
    for name, value in wanted.items():
        if name not in given:
            may = name.endswith(_OPTIONAL) or name.startswith(_DETECTION_NORMS)
            (optional if may else missing).append(name)
        elif given[name].shape != value.shape and not _resizable(name, given[name], value):
            mismatched.append(f"{name}: {tuple(given[name].shape)}, wanted {tuple(value.shape)}")
        else:
            loaded.append(name)
    unexpected = [name for name in given if name not in wanted and not name.endswith(_OPTIONAL)]
    return Fit(*(tuple(names) for names in (loaded, missing, optional, mismatched, unexpected)))


def plugged(path: Path, config: Config) -> tuple[dict[str, Any], Converted, Fit]:
    """Dotted options that make ``config``'s detector begin from ``path``; what the file is; how it fits.

    The options name the weights, and change the backbone's style and the images' normalisation where the file was
    trained with others. Raises AlignDetError when the file does not fill the backbone.
    """
    backbone = config.model.backbone.to_dict()
    converted = convert(path)
    fitted = fit(converted, backbone)
    if not fitted.complete:
        wrong = [f"{name} is missing" for name in fitted.missing] + list(fitted.mismatched)
        raise AlignDetError(
            f"{path} ({converted.project}, {converted.family.name}) does not fill the detector's {backbone['type']}: "
            f"{len(fitted.loaded)} tensors fit, {len(wrong)} do not, first {'; '.join(wrong[:3]) or 'none'}. "
            f"`aligndet backbone inspect {path}` says what it fits"
        )
    options: dict[str, Any] = _weights_option(path, backbone)
    options |= _style_option(converted, backbone)
    return options | _input_options(converted, config), converted, fitted


def _weights_option(path: Path, backbone: Mapping[str, Any]) -> dict[str, Any]:
    if backbone["type"] == "TimmBackbone":
        return {"model.backbone.weights": str(path)}
    init: dict[str, Any] = {
        "type": "Pretrained",
        "prefix": "backbone.",
        "checkpoint": f"{SCHEME}{backbone['type']}:{path}",
    }
    # Instead of what is there, not merged with it; mmengine takes the word only where something is.
    replaced = {"_delete_": True} if "init_cfg" in backbone else {}
    return {"model.backbone.init_cfg": init | replaced}


def _style_option(converted: Converted, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Where a bottleneck has its stride: all published checkpoints but Caffe's have it in the 3x3 convolution."""
    if converted.family.name != "ResNet" or backbone["type"] == "TimmBackbone":
        return {}
    trained = (converted.meta or {}).get("backbone", {}).get("style", "pytorch")
    return {} if backbone.get("style", "pytorch") == trained else {"model.backbone.style": trained}


def _input_options(converted: Converted, config: Config) -> dict[str, Any]:
    place = "model.data_preprocessor" if config.model.get("data_preprocessor") else "data_preprocessor"
    spec = converted.meta["inputs"] if converted.meta else vars(IMAGENET)
    if converted.meta is None and converted.family.name == "other":
        return {}
    wanted = {name: spec[name] for name in ("mean", "std", "bgr_to_rgb")}
    present = config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}
    return {
        f"{place}.{name}": list(value) if isinstance(value, tuple) else value
        for name, value in wanted.items()
        if _plain(present.get(name)) != _plain(value)
    }


def _plain(value: Any) -> Any:
    return [float(item) for item in value] if isinstance(value, (list, tuple)) else value


def _wanted(backbone: Mapping[str, Any]) -> dict[str, Tensor]:
    config = {key: value for key, value in backbone.items() if key != "init_cfg"}
    # Without memory where it can be: mmdet's Swin asks tensors for their values while it is built.
    device = "cpu" if backbone["type"] == "SwinTransformer" else "meta"
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device(device):
        module: Any = MODELS.build(ConfigDict(config))
    state: dict[str, Tensor] = module.state_dict()
    return {name.removeprefix("timm_model."): value for name, value in state.items()}


def _resizable(name: str, given: Tensor, wanted: Tensor) -> bool:
    """mmdet interpolates Swin's position tables of another window."""
    return name.endswith("relative_position_bias_table") and given.shape[1] == wanted.shape[1]
