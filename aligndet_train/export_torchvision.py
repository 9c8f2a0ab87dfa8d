"""mmdet weights under torchvision's names: Faster R-CNN, RetinaNet and FCOS on a ResNet-50 with FPN.

The weights are the same numbers. The outputs are too where both libraries compute the same thing; where an option of
mmdet's config says otherwise, `differences` says so in words, and fine-tuning has to make up for it.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

from aligndet_train.detectors.class_names import class_name
from aligndet_train.export_differences import Rule, broken, option, resnet_rules
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


_ALIGNED = "RoIAlign samples other points"
_ANCHORS = "anchors have another {}, and boxes are relative to them"
_UNITS = "box offsets are in other units"
_NMS = "overlapping boxes are removed otherwise"


def _anchor_rules(head: str, strides: list[int], **sizes: Any) -> list[Rule]:
    """sizes: options of mmdet's AnchorGenerator that give torchvision's anchors."""
    generator = f"{head}.anchor_generator"
    return [
        Rule(f"{generator}.type", "AnchorGenerator", "AnchorGenerator", "anchors are made otherwise"),
        *(Rule(f"{generator}.{name}", value, None, _ANCHORS.format("size")) for name, value in sizes.items()),
        Rule(f"{generator}.base_sizes", None, None, _ANCHORS.format("size")),
        Rule(f"{generator}.ratios", [0.5, 1.0, 2.0], None, _ANCHORS.format("shape")),
        Rule(f"{generator}.scale_major", True, True, _ANCHORS.format("order")),
        Rule(f"{generator}.strides", strides, None, _ANCHORS.format("spacing")),
        Rule(f"{generator}.center_offset", 0.0, 0.0, _ANCHORS.format("place")),
        Rule(f"{generator}.centers", None, None, _ANCHORS.format("place")),
    ]


def _coder_rules(head: str, stds: list[float]) -> list[Rule]:
    coder = f"{head}.bbox_coder"
    return [
        Rule(f"{coder}.type", "DeltaXYWHBBoxCoder", "DeltaXYWHBBoxCoder", "boxes are encoded otherwise"),
        Rule(f"{coder}.target_means", [0.0] * 4, [0.0] * 4, _UNITS),
        Rule(f"{coder}.target_stds", stds, stds, _UNITS),
        Rule(f"{coder}.clip_border", True, True, "boxes may leave the image"),
        Rule(f"{coder}.add_ctr_clamp", False, False, "centres of boxes cannot move as far"),
    ]


def _fpn_rules(start_level: int) -> list[Rule]:
    return [
        Rule("neck.start_level", start_level, 0, "the FPN has other levels"),
        Rule("neck.end_level", -1, -1, "the FPN has other levels", (3,)),
        Rule("neck.num_outs", 5, None, "the FPN has other levels"),
        Rule("neck.upsample_cfg", {"mode": "nearest"}, {"mode": "nearest"}, "maps are enlarged otherwise"),
        Rule("neck.norm_cfg", None, None, "the FPN's layers are normalised"),
        Rule("neck.act_cfg", None, None, "the FPN's layers have an activation"),
    ]


def _dense_rules(head: str, *also: str) -> list[Rule]:
    """Of detectors of one stage. also: heads of mmdet's that differ from ``head`` in training alone."""
    return [
        *_fpn_rules(1),
        Rule("neck.add_extra_convs", "on_output", False, "P6 is made of another map than P5"),
        Rule("neck.relu_before_extra_convs", True, False, "P7 is made of P6 without a ReLU before it"),
        Rule("bbox_head.type", head, head, "the head computes otherwise", also),
        Rule("bbox_head.stacked_convs", 4, 4, "the head has another number of layers"),
        Rule("bbox_head.loss_cls.use_sigmoid", True, True, "scores are a softmax"),
        Rule("test_cfg.nms.type", "nms", "nms", _NMS),
        Rule("test_cfg.nms.class_agnostic", False, False, _NMS),
        Rule("test_cfg.min_bbox_size", 0, -1, "small boxes are dropped", (-1,)),
    ]


_SAME: dict[str, list[Rule]] = {
    "FasterRCNN": [
        *_fpn_rules(0),
        Rule("neck.add_extra_convs", False, False, "P6 is made by a convolution"),
        *_anchor_rules(
            "rpn_head",
            [4, 8, 16, 32, 64],
            scales=[8],
            octave_base_scale=None,
            scales_per_octave=None,
        ),
        *_coder_rules("rpn_head", [1.0] * 4),
        Rule("rpn_head.num_convs", 1, 1, "the RPN has another number of layers"),
        Rule("rpn_head.loss_cls.use_sigmoid", True, True, "the RPN's scores are a softmax"),
        Rule("test_cfg.rpn.nms.type", "nms", "nms", _NMS),
        Rule("test_cfg.rpn.min_bbox_size", 0, -1, "small proposals are dropped", (-1,)),
        Rule("roi_head.bbox_roi_extractor.type", "SingleRoIExtractor", None, "RoIs are pooled otherwise"),
        Rule("roi_head.bbox_roi_extractor.finest_scale", 56, 56, "RoIs are pooled from other levels"),
        Rule(
            "roi_head.bbox_roi_extractor.featmap_strides", [4, 8, 16, 32], None, "RoIs are pooled elsewhere"
        ),
        Rule("roi_head.bbox_roi_extractor.roi_layer.type", "RoIAlign", None, "RoIs are pooled otherwise"),
        Rule(
            "roi_head.bbox_roi_extractor.roi_layer.output_size", 7, None, "RoIs have another size", ([7, 7],)
        ),
        Rule("roi_head.bbox_roi_extractor.roi_layer.pool_mode", "avg", "avg", "RoIs are pooled otherwise"),
        Rule("roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", 2, 0, _ALIGNED),
        Rule("roi_head.bbox_roi_extractor.roi_layer.aligned", False, True, _ALIGNED),
        *_coder_rules("roi_head.bbox_head", [0.1, 0.1, 0.2, 0.2]),
        Rule("roi_head.bbox_head.reg_class_agnostic", False, False, "one box is predicted for all classes"),
        Rule("roi_head.bbox_head.loss_cls.use_sigmoid", False, False, "scores are no softmax"),
        Rule("test_cfg.rcnn.nms.type", "nms", "nms", _NMS),
        Rule("test_cfg.rcnn.nms.class_agnostic", False, False, _NMS),
    ],
    "RetinaNet": [
        *_dense_rules("RetinaHead", "FreeAnchorRetinaHead", "PISARetinaHead"),
        *_anchor_rules(
            "bbox_head",
            [8, 16, 32, 64, 128],
            scales=None,
            octave_base_scale=4,
            scales_per_octave=3,
        ),
        *_coder_rules("bbox_head", [1.0] * 4),
        Rule("bbox_head.norm_cfg", None, None, "the head's layers are normalised"),
    ],
    "FCOS": [
        *_dense_rules("FCOSHead"),
        Rule(
            "bbox_head.norm_on_bbox", True, False, "distances pass through exp, in torchvision through ReLU"
        ),
        Rule("bbox_head.centerness_on_reg", True, False, "centerness is on the class tower"),
        Rule("bbox_head.strides", [8, 16, 32, 64, 128], [4, 8, 16, 32, 64], "distances are in other units"),
        Rule("bbox_head.norm_cfg.type", "GN", "GN", "the head's layers are normalised otherwise"),
        Rule("bbox_head.norm_cfg.num_groups", 32, 32, "the head's layers are normalised otherwise"),
        Rule("bbox_head.dcn_on_last_conv", False, False, "the head's last convolutions are deformable"),
    ],
}
_ALL = [
    *resnet_rules([0, 1, 2, 3]),
    Rule("data_preprocessor.mean", [123.675, 116.28, 103.53], None, "images are centred otherwise"),
    Rule("data_preprocessor.std", [58.395, 57.12, 57.375], None, "images are scaled otherwise"),
    Rule("data_preprocessor.bgr_to_rgb", True, False, "images are BGR"),
    Rule("data_preprocessor.pad_size_divisor", 32, 1, "images are padded to other sizes"),
]
# Of test_cfg: mmdet's option, the argument of torchvision's builder, and that one's default. FCOS' score_thr is absent:
# mmdet holds it against the class' score, torchvision against the root of its product with centerness.
_TESTED: dict[str, list[tuple[str, str, float]]] = {
    "FasterRCNN": [
        ("rpn.nms_pre", "rpn_pre_nms_top_n_test", 1000),
        ("rpn.max_per_img", "rpn_post_nms_top_n_test", 1000),
        ("rpn.nms.iou_threshold", "rpn_nms_thresh", 0.7),
        ("rcnn.score_thr", "box_score_thresh", 0.05),
        ("rcnn.nms.iou_threshold", "box_nms_thresh", 0.5),
        ("rcnn.max_per_img", "box_detections_per_img", 100),
    ],
    "RetinaNet": [
        ("nms_pre", "topk_candidates", 1000),
        ("score_thr", "score_thresh", 0.05),
        ("nms.iou_threshold", "nms_thresh", 0.5),
        ("max_per_img", "detections_per_img", 300),
    ],
    "FCOS": [
        ("nms_pre", "topk_candidates", 1000),
        ("nms.iou_threshold", "nms_thresh", 0.6),
        ("max_per_img", "detections_per_img", 100),
    ],
}


def torchvision_model(model_config: Mapping[str, Any], **settings: Any) -> nn.Module:
    """The torchvision detector that weights of a mmdet ``model`` config fit, with random weights.

    settings: of torchvision's own builder; where silent, thresholds are those of ``test_cfg``, but for FCOS' score. Its
    anchors are mmdet's: torchvision rounds them to whole pixels, and centres FCOS' points on the corners of cells.
    Raises AlignDetError for an architecture torchvision lacks.
    """
    kind = _kind(model_config)
    classes = _classes(model_config)
    given = {"num_classes": classes + (kind == "FasterRCNN"), **_thresholds(model_config, kind), **settings}
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
    """Sentences on what a mmdet config computes otherwise than torchvision; empty: equal in all options checked.

    Those are options of the backbone, neck, heads, ``test_cfg`` and the model's ``data_preprocessor``, as of
    `load_run_config`. FCOS' scores are not among them: torchvision's are always the square root of mmdet's.
    """
    kind = _kind(model_config)
    tested = [
        Rule(f"test_cfg.{name}", default, None, f"torchvision's builder takes it as {argument}")
        for name, argument, default in _TESTED[kind]
    ]
    return broken([*_ALL, *_SAME[kind], *tested], model_config)


def _thresholds(model: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = {argument: option(model, f"test_cfg.{name}") for name, argument, _ in _TESTED[kind]}
    # mmdet's -1, all of them, has no counterpart.
    return {argument: value for argument, value in found.items() if value is not None and value >= 0}


def _kind(model: Mapping[str, Any]) -> str:
    kind, backbone, neck = class_name(model["type"]), model["backbone"], model.get("neck") or {}
    fits = (
        kind in _BUILDERS
        and (class_name(backbone["type"]), backbone.get("depth")) == ("ResNet", 50)
        and (class_name(neck.get("type")), neck.get("out_channels")) == ("FPN", 256)
    )
    if not fits:
        raise AlignDetError(
            f"torchvision has no {kind} with this backbone and neck: it has {', '.join(_BUILDERS)} on a ResNet-50 with "
            "an FPN of 256 channels. Export for mmdet instead (without --to)"
        )
    if kind == "FasterRCNN" and class_name(model["roi_head"]["bbox_head"]["type"]) != "Shared2FCBBoxHead":
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
