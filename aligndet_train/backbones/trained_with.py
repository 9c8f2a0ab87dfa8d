"""How a file's backbone saw its images: from what the file says, else from what its project published, else unknown."""

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from aligndet_train.backbones.convert import ALONE, Converted
from aligndet_train.backbones.files import WeightsFile, read_file
from aligndet_train.backbones.registry import IMAGENET
from aligndet_train.checkpoint import decoded
from aligndet_train.preprocess import InputSpec

# Trained on RGB with ImageNet's mean and deviation, the stride in the 3x3 convolution, by their papers' code.
_PUBLISHED = ("MoCo v1/v2", "MoCo v3", "PixPro", "SimMIM", "SimSiam", "DINOv2", "DINO", "SwAV", "MAE")
_LONGEST_CONFIG = 10**6
_UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SyntaxError,
    RecursionError,
    MemoryError,
    OverflowError,
)


@dataclass(frozen=True)
class Training:
    """inputs: normalisation and channel order. style: which convolution of a ResNet's bottleneck has the stride."""

    inputs: InputSpec
    style: str


def trained_with(converted: Converted, backbone: Mapping[str, Any]) -> Training | None:
    """How the backbone of ``converted`` was trained; None when nothing tells. backbone: the detector's config."""
    try:
        stated = _stated(converted)
    except _UNREADABLE:
        stated = None
    if stated is None and (converted.project in _PUBLISHED or _is_torchvisions(converted, backbone)):
        return Training(IMAGENET, "pytorch")
    return stated


def detector_trained_with(weights: Path) -> Training | None:
    """How the detector of a file of `aligndet export`, or of mmengine's with its config, saw its images; None when the
    file does not say.

    Raises AlignDetError when ``weights`` is no weights file.
    """
    file = read_file(weights)
    try:
        return _of_detector(_meta(file))
    except _UNREADABLE:
        return None


def detector_model(file: WeightsFile) -> dict[str, Any] | None:
    """The ``model`` of the config that `aligndet export`, or mmengine, wrote into a weights file; None where there is
    none. What was computed in that config is left out."""
    meta = _meta(file)
    try:
        if isinstance(meta, Mapping) and isinstance(meta.get("stock_model"), str):
            model = json.loads(meta["stock_model"])
        else:
            model = _assigned(_text_of_config(meta) or "").get("model")
    except _UNREADABLE:
        return None
    return model if isinstance(model, dict) else None


def _text_of_config(meta: Any) -> str | None:
    text = (meta.get("cfg") or meta.get("config")) if isinstance(meta, Mapping) else None
    return text if isinstance(text, str) and len(text) <= _LONGEST_CONFIG else None


def _stated(converted: Converted) -> Training | None:
    """What the file says: a backbone.pth, our box-domain stage's checkpoint or export, mmengine's with its config."""
    content = converted.file.content
    if converted.meta is not None:
        return _training(converted.meta["backbone"], converted.meta["inputs"])
    if isinstance(content.get("identity"), str):
        model = decoded(content["identity"])["stock_model"]
        return _training(model["backbone"], model["data_preprocessor"])
    return _of_detector(_meta(converted.file))


def _meta(file: WeightsFile) -> Any:
    if file.path.suffix != ".safetensors":
        return file.content.get("meta")
    with safe_open(file.path, framework="pt") as stream:
        return stream.metadata()


def _of_detector(meta: Any) -> Training | None:
    if isinstance(meta, Mapping) and isinstance(meta.get("stock_model"), str):
        model = json.loads(meta["stock_model"])
        return _training(model["backbone"], model["data_preprocessor"])
    text = _text_of_config(meta)
    if text is None:
        return None
    config = _assigned(text)
    inputs = config["model"].get("data_preprocessor") or config.get("data_preprocessor")
    return _training(config["model"]["backbone"], inputs or config["img_norm_cfg"])


def _training(backbone: Mapping[str, Any], inputs: Mapping[str, Any]) -> Training | None:
    # mmpretrain, and mmdet before its third version, write to_rgb.
    swaps = any(inputs.get(name, False) for name in ("bgr_to_rgb", "rgb_to_bgr", "to_rgb"))
    spec = InputSpec.from_stock({**inputs, "bgr_to_rgb": swaps, "pad_size_divisor": 1})
    numbers = [float(value) for value in (*spec.mean, *spec.std)]
    style = backbone.get("style", "pytorch")
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or style not in ("pytorch", "caffe"):
        return None
    return Training(spec, style)


def _assigned(text: str) -> dict[str, Any]:
    """The literal settings of a config's text; what is computed in it is left out, and nothing of it is run."""
    return {
        target.id: _literal(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("model", "data_preprocessor", "img_norm_cfg")
    }


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _is_torchvisions(converted: Converted, backbone: Mapping[str, Any]) -> bool:
    """Whether a backbone without wrapping has the names of published ImageNet models, and no other reading is near.

    Caffe's converted ResNets have the same names, and ViTs are published with several normalisations.
    """
    if converted.project != ALONE or backbone.get("style") == "caffe":
        return False
    if converted.family.name == "Swin":
        return not any(".attn.w_msa." in key for key in converted.used)
    return converted.family.name in ("ResNet", "MobileNetV2") and "classifier" in converted.left.values()
