"""mmdet weights under torchvision's names: Faster R-CNN, RetinaNet and FCOS on a ResNet-50 with FPN.

The weights are the same numbers. The outputs are too where both libraries compute the same thing; where mmdet's
config says otherwise, `differences` says so in words, and fine-tuning has to make up for it.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

from proposals.errors import AlignDetError

State = dict[str, Tensor]
_FPN_LEVELS = {"FasterRCNN": 4, "RetinaNet": 3, "FCOS": 3}
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "FasterRCNN": detection.fasterrcnn_resnet50_fpn,
    "RetinaNet": detection.retinanet_resnet50_fpn,
    "FCOS": detection.fcos_resnet50_fpn,
}
_RULES: dict[str, list[tuple[str, str]]] = {
    "FasterRCNN": [
        (r"rpn_head\.rpn_conv", "rpn.head.conv.0.0"),
        (r"rpn_head\.rpn_cls", "rpn.head.cls_logits"),
        (r"rpn_head\.rpn_reg", "rpn.head.bbox_pred"),
        (r"roi_head\.bbox_head\.shared_fcs\.0", "roi_heads.box_head.fc6"),
        (r"roi_head\.bbox_head\.shared_fcs\.1", "roi_heads.box_head.fc7"),
        (r"roi_head\.bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score"),
        (r"roi_head\.bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred"),
    ],
    "RetinaNet": [
        (r"bbox_head\.cls_convs\.(\d)\.conv", r"head.classification_head.conv.\1.0"),
        (r"bbox_head\.reg_convs\.(\d)\.conv", r"head.regression_head.conv.\1.0"),
        (r"bbox_head\.retina_cls", "head.classification_head.cls_logits"),
        (r"bbox_head\.retina_reg", "head.regression_head.bbox_reg"),
    ],
    "FCOS": [
        (r"bbox_head\.conv_cls", "head.classification_head.cls_logits"),
        (r"bbox_head\.conv_reg", "head.regression_head.bbox_reg"),
        (r"bbox_head\.conv_centerness", "head.regression_head.bbox_ctrness"),
    ],
}


@dataclass(frozen=True)
class _Rule:
    """What an option of a mmdet config must be for equal outputs, and what is otherwise different."""

    option: str
    wanted: Any
    default: Any
    consequence: str


_ALIGNED = "RoIAlign samples other points"
_ANCHORS = "anchors have another {}, and boxes are relative to them"
_STDS = "box offsets are in other units"


def _anchor_rules(head: str, strides: list[int], **sizes: Any) -> list[_Rule]:
    """sizes: options of mmdet's AnchorGenerator that give torchvision's anchors."""
    generator = f"{head}.anchor_generator"
    return [
        *(
            _Rule(f"{generator}.{name}", value, None, _ANCHORS.format("size"))
            for name, value in sizes.items()
        ),
        _Rule(f"{generator}.ratios", [0.5, 1.0, 2.0], None, _ANCHORS.format("shape")),
        _Rule(f"{generator}.strides", strides, None, _ANCHORS.format("spacing")),
    ]


_SAME: dict[str, list[_Rule]] = {
    "FasterRCNN": [
        _Rule("roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", 2, 0, _ALIGNED),
        _Rule("roi_head.bbox_roi_extractor.roi_layer.aligned", False, True, _ALIGNED),
        *_anchor_rules("rpn_head", [4, 8, 16, 32, 64], scales=[8]),
        _Rule("rpn_head.bbox_coder.target_stds", [1.0] * 4, [1.0] * 4, _STDS),
        _Rule("roi_head.bbox_head.bbox_coder.target_stds", [0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], _STDS),
    ],
    "RetinaNet": [
        _Rule("neck.add_extra_convs", "on_output", False, "P6 is made of C5, torchvision's of P5"),
        _Rule("neck.relu_before_extra_convs", True, False, "P7 is made of P6 without a ReLU before it"),
        *_anchor_rules(
            "bbox_head", [8, 16, 32, 64, 128], scales=None, octave_base_scale=4, scales_per_octave=3
        ),
        _Rule("bbox_head.bbox_coder.target_stds", [1.0] * 4, [1.0] * 4, _STDS),
    ],
    "FCOS": [
        _Rule("neck.add_extra_convs", "on_output", False, "P6 is made of another map"),
        _Rule("neck.relu_before_extra_convs", True, False, "P7 is made of P6 without a ReLU before it"),
        _Rule(
            "bbox_head.norm_on_bbox", True, False, "distances pass through exp, in torchvision through ReLU"
        ),
        _Rule("bbox_head.centerness_on_reg", True, False, "centerness is on the class tower"),
        _Rule("bbox_head.strides", [8, 16, 32, 64, 128], [4, 8, 16, 32, 64], "distances are in other units"),
    ],
}
_ALL = [
    _Rule("backbone.style", "pytorch", "pytorch", "the stride of a bottleneck is on its first convolution"),
    _Rule("data_preprocessor.mean", [123.675, 116.28, 103.53], None, "images are centred otherwise"),
    _Rule("data_preprocessor.std", [58.395, 57.12, 57.375], None, "images are scaled otherwise"),
    _Rule("data_preprocessor.bgr_to_rgb", True, False, "images are BGR"),
]


def torchvision_model(model_config: Mapping[str, Any], **settings: Any) -> nn.Module:
    """The torchvision detector that weights of a mmdet ``model`` config fit, with random weights.

    settings: of torchvision's own builder. Its anchors are mmdet's: torchvision rounds them to whole pixels, and
    centres FCOS' points on the corners of cells. Raises AlignDetError for an architecture torchvision lacks.
    """
    kind = _kind(model_config)
    classes = _classes(model_config)
    given = {"num_classes": classes + (kind == "FasterRCNN"), **settings}
    model: Any = _BUILDERS[kind](weights=None, weights_backbone=None, **given)
    generator = model.rpn.anchor_generator if kind == "FasterRCNN" else model.anchor_generator
    generator.cell_anchors = _cell_anchors(kind)
    detector: nn.Module = model
    return detector


def to_torchvision(state: Mapping[str, Tensor], model_config: Mapping[str, Any]) -> State:
    """``state``, under mmdet's names, under torchvision's. Predictors may be missing; their classes are reordered.

    Raises AlignDetError for an architecture torchvision lacks, and when FCOS' levels have learned different scales.
    """
    kind = _kind(model_config)
    renamed = {_renamed(name, kind): value for name, value in state.items() if ".scales." not in name}
    if kind == "FasterRCNN":
        _background_first(renamed)
    if kind == "FCOS":
        _give_towers_a_bias(renamed)
        _fold_scales(renamed, [value for name, value in state.items() if ".scales." in name])
    return renamed


def differences(model_config: Mapping[str, Any]) -> list[str]:
    """Sentences on what a mmdet config computes otherwise than torchvision; empty: outputs are equal.

    Its ``data_preprocessor`` is that of the model, as of `load_run_config`.
    """
    rules = [*_ALL, *_SAME[_kind(model_config)]]
    found = [(rule, _option(model_config, rule.option, rule.default)) for rule in rules]
    return [
        f"{rule.option} is {value!r}: {rule.consequence} (equal with {rule.wanted!r})"
        for rule, value in found
        if _plain(value) != rule.wanted
    ]


def _kind(model: Mapping[str, Any]) -> str:
    kind, backbone = str(model["type"]), model["backbone"]
    fits = kind in _BUILDERS and (backbone["type"], backbone.get("depth")) == ("ResNet", 50)
    neck = model.get("neck") or {}
    if not fits or neck.get("type") != "FPN" or neck.get("out_channels") != 256:
        raise AlignDetError(
            f"torchvision has no {kind} with this backbone and neck: it has {', '.join(_BUILDERS)} on a ResNet-50 with "
            "an FPN of 256 channels. Export for mmdet instead (without --to)"
        )
    if kind == "FasterRCNN" and model["roi_head"]["bbox_head"]["type"] != "Shared2FCBBoxHead":
        raise AlignDetError(
            "torchvision's Faster R-CNN has mmdet's Shared2FCBBoxHead, this config another head"
        )
    return kind


def _classes(model: Mapping[str, Any]) -> int:
    head = model["roi_head"]["bbox_head"] if "roi_head" in model else model["bbox_head"]
    return int(head["num_classes"])


def _renamed(name: str, kind: str) -> str:
    if name.startswith("backbone."):
        return f"backbone.body.{name.removeprefix('backbone.')}"
    if found := re.fullmatch(r"neck\.(lateral|fpn)_convs\.(\d)\.conv\.(\w+)", name):
        return _fpn_name(found[1], int(found[2]), found[3], _FPN_LEVELS[kind])
    tower = re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d)\.(conv|gn)\.(\w+)", name)
    if tower and kind == "FCOS":
        part = "classification" if tower[1] == "cls" else "regression"
        return f"head.{part}_head.conv.{3 * int(tower[2]) + (tower[3] == 'gn')}.{tower[4]}"
    for pattern, replacement in _RULES[kind]:
        new, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return new
    return name


def _fpn_name(part: str, level: int, parameter: str, levels: int) -> str:
    if part == "lateral":
        return f"backbone.fpn.inner_blocks.{level}.0.{parameter}"
    if level < levels:
        return f"backbone.fpn.layer_blocks.{level}.0.{parameter}"
    return f"backbone.fpn.extra_blocks.p{level - levels + 6}.{parameter}"


def _background_first(state: State) -> None:
    """mmdet's last class is the background; torchvision's is the first, and it has box offsets as well."""
    for parameter in ("weight", "bias"):
        score, boxes = (f"roi_heads.box_predictor.{name}.{parameter}" for name in ("cls_score", "bbox_pred"))
        if score in state:
            state[score] = state[score].roll(1, 0)
        if boxes in state:
            state[boxes] = torch.cat([torch.zeros_like(state[boxes][:4]), state[boxes]])


def _give_towers_a_bias(state: State) -> None:
    """torchvision's convolutions before a GroupNorm have a bias, mmdet's have none: zeros are the same."""
    for name in [name for name in state if re.fullmatch(r"head\.\w+\.conv\.\d+\.weight", name)]:
        weight = state[name]
        if weight.ndim == 4:
            state.setdefault(name.replace("weight", "bias"), weight.new_zeros(len(weight)))


def _fold_scales(state: State, scales: list[Tensor]) -> None:
    """torchvision has no scale per level: a common one goes into the regression's weights."""
    names = [f"head.regression_head.bbox_reg.{parameter}" for parameter in ("weight", "bias")]
    if not scales or names[0] not in state:
        return
    if max(scales) - min(scales) > 1e-6:
        raise AlignDetError(
            "FCOS learned another scale for each level, which torchvision's has not: export without --keep-predictors"
        )
    for name in names:
        state[name] = state[name] * scales[0]


def _cell_anchors(kind: str) -> list[Tensor]:
    if kind == "FCOS":
        return [torch.tensor([[0.0, 0.0, stride, stride]]) for stride in (8, 16, 32, 64, 128)]
    octaves = [2 ** (i / 3) for i in range(3)] if kind == "RetinaNet" else [1.0]
    return [_anchors([size * octave for octave in octaves]) for size in (32, 64, 128, 256, 512)]


def _anchors(sizes: list[float]) -> Tensor:
    shapes = [
        (size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in (0.5, 1.0, 2.0) for size in sizes
    ]
    return torch.tensor([[-width / 2, -height / 2, width / 2, height / 2] for width, height in shapes])


def _option(config: Mapping[str, Any], path: str, default: Any) -> Any:
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
