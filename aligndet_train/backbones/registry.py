"""Backbones by name, one list for everything: mmdet's, any of timm's, torchvision's ResNets, or a config file's.

resnet50                  a name of MMDET_BACKBONES: mmdet's class, whose result any mmdet config can load
timm:NAME                 any timm model that hands out feature maps (see TimmBackbone)
torchvision:resnet50      the same network as mmdet's, which stands in for it: ResNets, ResNeXts, Swins, mobilenet_v2
FILE.py, .json, .yaml     the ``model.backbone`` of a mmdet config, with the normalisation its detector expects
"""

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from aligndet_train.building import mmdets_scope
from aligndet_train.config import preprocessor_of, read_config
from aligndet_train.detectors.class_names import with_registered_names
from aligndet_train.plain_config import is_config
from aligndet_train.preprocess import InputSpec
from proposals.errors import AlignDetError

IMAGENET = InputSpec((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr_to_rgb=True, pad_size_divisor=32)
_SWIN = {
    "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
MMDET_BACKBONES: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": {"type": "ResNet", "depth": depth} for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": {"type": "ResNeXt", "depth": 50, "groups": 32, "base_width": 4},
    "resnext101_32x8d": {"type": "ResNeXt", "depth": 101, "groups": 32, "base_width": 8},
    "mobilenet_v2": {"type": "MobileNetV2", "out_indices": (7,)},
    **{
        name: {"type": "SwinTransformer", "embed_dims": width, "depths": depths, "num_heads": heads}
        for name, (width, depths, heads) in _SWIN.items()
    },
}
# Where torchvision's names are others.
_OF_TORCHVISION = {"swin_t": "swin_tiny", "swin_s": "swin_small", "swin_b": "swin_base"}


@dataclass(frozen=True)
class BackboneChoice:
    """A backbone to be trained. config: mmdet's, plain data. inputs: how it wants its images."""

    name: str
    config: dict[str, Any]
    inputs: InputSpec


def find_backbone(name: str) -> BackboneChoice:
    """The backbone called ``name``, as the module says, with nothing frozen and only its last feature map handed out,
    where its class can be told so (HRNet's cannot: all its maps end at the same depth).

    Raises AlignDetError when there is none, listing the names.
    """
    provider, colon, model = name.partition(":")
    if is_config(name):
        return _of_config(Path(name))
    if provider == "timm" and colon:
        return BackboneChoice(name, _timm_config(model), IMAGENET)
    known = model if provider in ("torchvision", "mmdet") and colon else name
    if provider == "torchvision" and colon:
        known = _OF_TORCHVISION.get(model, model)
    if known not in MMDET_BACKBONES or (provider == "torchvision" and known == "swin_large"):
        raise AlignDetError(
            f"no backbone {name!r}: give one of {', '.join(MMDET_BACKBONES)}, timm:NAME, torchvision:NAME of these, or "
            "a mmdet config file"
        )
    return BackboneChoice(name, _trainable(MMDET_BACKBONES[known]), IMAGENET)


def build_backbone(config: dict[str, Any]) -> nn.Module:
    """The module of a mmdet backbone config, weights as it initialises them; nothing is downloaded.

    Raises AlignDetError when its class is not registered or refuses its settings.
    """
    with mmdets_scope():
        try:
            backbone: Any = MODELS.build(ConfigDict(config))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, KeyError) and "is not in the" in str(error):
                raise AlignDetError(f"mmdet has no backbone {config.get('type')!r}") from error
            raise AlignDetError(
                f"mmdet's {config.get('type')} cannot be made with {config}: {error}"
            ) from error
    backbone.init_weights()
    built: nn.Module = backbone
    return built


def output_channels(backbone: nn.Module, side: int = 64) -> int:
    """Channels of the maps that are handed out, together. side: px of the image that is tried.

    Raises AlignDetError when the backbone takes no image of that size.
    """
    with torch.no_grad():
        return sum(int(features.shape[1]) for features in _maps_of_nothing(backbone, side))


def parameters_without_gradient(backbone: nn.Module, side: int) -> list[str]:
    """Names of the trainable parameters that the maps of an image of ``side`` px do not depend on."""
    torch.autograd.backward([features.sum() for features in _maps_of_nothing(backbone, side)])
    idle = [name for name, value in backbone.named_parameters() if value.requires_grad and value.grad is None]
    backbone.zero_grad(set_to_none=True)
    return idle


def without_input(maps: Sequence[Tensor], images: Tensor) -> list[Tensor]:
    """``maps`` but for ``images`` themselves, which DetectoRS hands out, too: a cue that needs no learning."""
    return [features for features in maps if features is not images]


def _maps_of_nothing(backbone: nn.Module, side: int) -> list[Tensor]:
    training = backbone.training
    backbone.eval()
    images = torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device)
    try:
        maps = without_input(backbone(images), images)
    except (AssertionError, RuntimeError) as error:
        raise AlignDetError(
            f"the backbone takes no image of {side} px ({error}): give it the size that it was made for, "
            "--cfg-options views.size=N"
        ) from error
    backbone.train(training)
    return maps


def _of_config(path: Path) -> BackboneChoice:
    config = read_config(path, {})
    if "backbone" not in config.model:
        raise AlignDetError(f"the model of {path} has no backbone")
    _, preprocessor = preprocessor_of(config, path)
    return BackboneChoice(str(path), _trainable(backbone_of(config)), InputSpec.from_stock(preprocessor))


def backbone_of(config: Config) -> dict[str, Any]:
    """The ``model.backbone`` of a detector's config, plain data, its ``type`` the name that mmdet knows it by."""
    settings: dict[str, Any] = with_registered_names(config.model.backbone.to_dict())
    return settings | {"type": settings["type"].removeprefix("mmdet.")}


def _timm_config(model_name: str) -> dict[str, Any]:
    from aligndet_train.backbones.timm_backbone import feature_maps

    last = feature_maps(model_name) - 1
    return {"type": "TimmBackbone", "model_name": model_name, "out_indices": (last,), "norm_eval": False}


def _trainable(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with no frozen stage, live batch statistics, no weights to fetch and no map but the last."""
    changed = deepcopy(config)
    changed["init_cfg"] = None
    if changed["type"] == "TimmBackbone":
        changed["weights"] = None
        if isinstance(scales := changed.get("feature_scale"), (list, tuple)):
            changed["feature_scale"] = scales[-1:]
    accepted = constructor_parameters(changed["type"])
    # To EfficientNet, which alone has it by default, 0 is none.
    no_stage = 0 if accepted.get("frozen_stages") == 0 else -1
    defaults = {"frozen_stages": no_stage, "norm_eval": False}
    changed |= {name: value for name, value in defaults.items() if name in accepted}
    maps = changed.get("out_indices", accepted.get("out_indices"))
    if maps:
        changed["out_indices"] = (maps[-1],)
    if "norm_cfg" in changed:
        changed["norm_cfg"] = {**changed["norm_cfg"], "requires_grad": True}
    return changed


def constructor_parameters(name: str) -> dict[str, Any]:
    """Names and defaults of what the class registered as ``name`` can be given: by its own constructor, and by those of
    its bases as far as it passes on what it does not know.
    """
    with DefaultScope.overwrite_default_scope("mmdet"):
        kind = MODELS.get(name)
    found: dict[str, Any] = {}
    for base in inspect.getmro(kind) if kind is not None else ():
        if "__init__" in vars(base):
            taken = inspect.signature(vars(base)["__init__"]).parameters
            found = {name: parameter.default for name, parameter in taken.items()} | found
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
                break
    return found
