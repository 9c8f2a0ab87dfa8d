"""Putting a weights file into a detector's backbone: names, normalisation and style that go with it, all or nothing."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor

from aligndet_train.backbones.convert import Converted, convert
from aligndet_train.backbones.registry import backbone_of, build_backbone, constructor_parameters
from aligndet_train.backbones.scheme import SCHEME
from aligndet_train.backbones.trained_with import Training, detector_trained_with, trained_with
from aligndet_train.backbones.weights import flat_name
from aligndet_train.config import preprocessor_of
from aligndet_train.preprocess import InputSpec
from proposals.errors import AlignDetError

# Not in every file, and filled without it: counters, buffers of known content or computed from the weights (ConvAWS),
# norms that detection adds to Swin.
_OPTIONAL = ("num_batches_tracked", "relative_position_index", "weight_gamma", "weight_beta")
_DETECTION_NORMS = ("norm0.", "norm1.", "norm2.")
# A row of blocks, and the number of one in it: ResNet's, Swin's, ViT's, and what timm's wrapping makes of the last two.
_BLOCK = re.compile(r"((?:layer\d+|(?:stages|layers)[._]\d+[._]blocks|blocks(?:[._]\d+)?)[._])(\d+)(?=[._])")
_BESIDE_WEIGHTS = {"convert_weights": False, "pretrained": None}
# px: no model was made for it, so it is taken only where sizes are free.
_ANY_SIZE = (256, 320)


@dataclass(frozen=True)
class Fit:
    """How a file's tensors meet a backbone's: every key of the backbone is in one of the first three.

    loaded, missing, left_at_init (which may be missing), mismatched ("name: shape in the file, shape wanted"),
    unexpected, and of these surplus (of blocks beyond the backbone's last, or in its blocks and unknown there, which is
    another architecture's): names of the backbone's class.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_at_init: tuple[str, ...]
    mismatched: tuple[str, ...]
    unexpected: tuple[str, ...]
    surplus: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing that has to be there is missing or of another shape, and the file's blocks have no more."""
        return bool(self.loaded) and not self.missing and not self.mismatched and not self.surplus


def fit(converted: Converted, backbone: Mapping[str, Any]) -> Fit:
    """Compare with the mmdet ``backbone`` config. Raises AlignDetError when that cannot be built."""
    given = converted.for_backbone(backbone["type"])
    wanted = _wanted(backbone)
    # TimmBackbone leaves out what comes after its last map: depth is that of the whole model.
    whole = set(wanted)
    if backbone["type"] == "TimmBackbone":  # whose modules are renamed when timm wraps them
        given, wanted = (
            {flat_name(name): value for name, value in state.items()} for state in (given, wanted)
        )
        whole = {flat_name(name) for name in _timm_names(backbone["model_name"])}.union(wanted)
    loaded: list[str] = []
    missing: list[str] = []
    optional: list[str] = []
    mismatched: list[str] = []
    for name, value in wanted.items():
        if name not in given:
            may = name.endswith(_OPTIONAL) or name.startswith(_DETECTION_NORMS)
            (optional if may else missing).append(name)
        elif given[name].shape != value.shape and not _resizable(backbone, name, given[name], value):
            mismatched.append(f"{name}: {tuple(given[name].shape)}, wanted {tuple(value.shape)}")
        else:
            loaded.append(name)
    unexpected = [name for name in given if name not in wanted and not name.endswith(_OPTIONAL)]
    surplus = _surplus(unexpected, whole)
    return Fit(*(tuple(names) for names in (loaded, missing, optional, mismatched, unexpected, surplus)))


def _surplus(unexpected: Collection[str], whole: Collection[str]) -> list[str]:
    """Those of ``unexpected`` that ``whole`` has not, in a row of blocks that it has."""
    rows = {found[1] for name in whole if (found := _BLOCK.match(name))}
    return [
        name
        for name in unexpected
        if name not in whole and (found := _BLOCK.match(name)) and found[1] in rows
    ]


def _timm_names(model_name: str) -> list[str]:
    with torch.device("meta"):
        return list(timm.create_model(model_name, pretrained=False).state_dict())


def plugged(path: Path, config: Config) -> tuple[dict[str, Any], Converted, Fit]:
    """Dotted options that make ``config``'s detector begin from ``path``; what the file is; how it fits.

    The options name the weights, and change the backbone's style and the images' normalisation where the file was
    trained with others. Raises AlignDetError when the file does not fill the backbone.
    """
    backbone = backbone_of(config)
    converted = convert(path)
    fitted = fit(converted, backbone)
    if not fitted.complete:
        wrong = [f"{name} is missing" for name in fitted.missing] + list(fitted.mismatched)
        wrong += [f"{name} has no place in its blocks" for name in fitted.surplus]
        raise AlignDetError(
            f"{path} ({converted.project}, {converted.family.name}) does not fill the detector's {backbone['type']}: "
            f"{len(fitted.loaded)} tensors fit, {len(wrong)} do not, first {'; '.join(wrong[:3]) or 'none'}. "
            f"`aligndet backbone inspect {path}` says what it fits"
        )
    if backbone["type"] == "TimmBackbone":  # whose loader says itself what does not match
        _require_free_size(backbone)
    else:
        _require_loaded(path, backbone, converted, fitted)
    options = _weights_options(path, backbone)
    trained = trained_with(converted, backbone)
    if trained is not None:
        options |= _style_option(trained, converted, backbone) | _input_options(trained, config)
    return options, converted, fitted


def detector_settings(weights: Path, config: Config) -> dict[str, Any]:
    """Dotted options with which ``config``'s detector sees images as that of ``weights`` did, exported or fine-tuned.

    None of them where the file does not say. Raises AlignDetError when it is no weights file.
    """
    trained = detector_trained_with(weights)
    if trained is None or config.model.get("backbone") is None:
        return {}
    backbone = backbone_of(config)
    has_one = "style" in constructor_parameters(backbone["type"])
    return (_other_style(trained, backbone) if has_one else {}) | _input_options(trained, config)


def kept_settings(converted: Converted, config: Config) -> str | None:
    """A warning that names the settings of ``config`` which stay as the file does not say its own; None if it does."""
    backbone = backbone_of(config)
    if trained_with(converted, backbone) is not None:
        return None
    spec = InputSpec.from_stock(preprocessor_of(config, "the config")[1])
    style = (
        f", style {backbone['style']}" if backbone.get("style") and converted.family.name == "ResNet" else ""
    )
    return (
        "the file does not say how it was trained, so the detector's settings stay: "
        f"{'RGB' if spec.bgr_to_rgb else 'BGR'}, mean {spec.mean}, std {spec.std}{style}. If it was trained with "
        "others, give them as --cfg-options"
    )


def _weights(path: Path, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with which ``backbone`` loads ``path``."""
    if backbone["type"] == "TimmBackbone":
        return {"weights": str(path)}
    checkpoint = f"{SCHEME}{backbone['type']}:{path}"
    settings: dict[str, Any] = {
        "init_cfg": {"type": "Pretrained", "prefix": "backbone.", "checkpoint": checkpoint}
    }
    taken = constructor_parameters(backbone["type"])
    # They are by its names already, and it may not be given others beside them.
    return settings | {name: value for name, value in _BESIDE_WEIGHTS.items() if name in taken}


def _weights_options(path: Path, backbone: Mapping[str, Any]) -> dict[str, Any]:
    settings = _weights(path, backbone)
    if "init_cfg" in settings and "init_cfg" in backbone:
        # Instead of what is there, not merged with it; mmengine takes the word only where something is.
        settings["init_cfg"]["_delete_"] = True
    return {f"model.backbone.{name}": value for name, value in settings.items()}


@torch.no_grad()
def _require_loaded(path: Path, backbone: Mapping[str, Any], converted: Converted, fitted: Fit) -> None:
    """Raise AlignDetError unless the backbone's class, loading by its own code, ends up with the file's values.

    mmengine and mmdet pass over what does not match: the frozen backbone would be a random one.
    """
    has = build_backbone({**backbone, **_weights(path, backbone)}).state_dict()
    given = converted.for_backbone(backbone["type"])
    # A table of another shape was interpolated.
    same_shape = [name for name in fitted.loaded if has[name].shape == given[name].shape]
    other = [name for name in same_shape if not torch.equal(has[name], given[name].to(has[name]))]
    if other:
        raise AlignDetError(
            f"{path} fits the detector's {backbone['type']}, but that class does not load it: {len(other)} of "
            f"{len(fitted.loaded)} tensors keep other values, {other[0]} first. Give the weights in the form that its "
            "own `init_cfg` takes"
        )


def _style_option(trained: Training, converted: Converted, backbone: Mapping[str, Any]) -> dict[str, Any]:
    if converted.family.name != "ResNet" or backbone["type"] == "TimmBackbone":
        return {}
    return _other_style(trained, backbone)


def _other_style(trained: Training, backbone: Mapping[str, Any]) -> dict[str, Any]:
    same = backbone.get("style", "pytorch") == trained.style
    return {} if same else {"model.backbone.style": trained.style}


def _input_options(trained: Training, config: Config) -> dict[str, Any]:
    place, present = preprocessor_of(config, "the config")
    has, inputs = InputSpec.from_stock(present), trained.inputs
    options: dict[str, Any] = {}
    if (has.mean, has.std) != (inputs.mean, inputs.std):  # mmengine takes both or none
        options |= {"mean": list(inputs.mean), "std": list(inputs.std)}
    if has.bgr_to_rgb != inputs.bgr_to_rgb:
        # Its other name means the same, and would stay.
        name = "rgb_to_bgr" if present.get("rgb_to_bgr") else "bgr_to_rgb"
        options[name] = inputs.bgr_to_rgb
    return {f"{place}.{name}": value for name, value in options.items()}


def _wanted(backbone: Mapping[str, Any]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = _without_memory(backbone).state_dict()
    return {name.removeprefix("timm_model."): value for name, value in state.items()}


def _without_memory(backbone: Mapping[str, Any]) -> Any:
    """The module, where it can be without values: mmdet's Swin and PVT ask tensors for theirs while they are built."""
    config = {key: value for key, value in backbone.items() if key != "init_cfg"}
    with DefaultScope.overwrite_default_scope("mmdet"):
        try:
            with torch.device("meta"):
                return MODELS.build(ConfigDict(config))
        except RuntimeError:
            return MODELS.build(ConfigDict(config))


@torch.no_grad()
def _require_free_size(backbone: Mapping[str, Any]) -> None:
    """Raise AlignDetError when a TimmBackbone takes images of one size alone."""
    module = _without_memory(backbone).eval()
    try:
        module(torch.zeros(1, 3, *_ANY_SIZE, device="meta"))
    except (AssertionError, RuntimeError) as error:
        height, width = _ANY_SIZE
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AlignDetError(
            f"timm's {backbone['model_name']} takes no images of {height} x {width} px ({reason}), and a detector's "
            "have any size: take another model, a ViT, Swin or convolutional one"
        ) from error


def _resizable(backbone: Mapping[str, Any], name: str, given: Tensor, wanted: Tensor) -> bool:
    """mmdet's own loader interpolates Swin's position tables of another window; TimmBackbone's does not."""
    table = backbone["type"] == "SwinTransformer" and name.endswith("relative_position_bias_table")
    return table and given.shape[1] == wanted.shape[1]
