"""mmdet's own config of each family, with widths a CPU test can afford, as dotted options on the stock file."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aligndet_train.config import RunConfig, load_run_config, read_config

Options = dict[str, Any]

PRETRAIN: Options = {
    "batch_size": 2,
    "sampled_boxes": 64,
    "embed_dims": 32,
    "views": {"short_sides": (96, 128), "long_side": 192},
}
_RESNET = {
    "backbone.depth": 18,
    "backbone.stem_channels": 8,
    "backbone.base_channels": 8,
    "backbone.init_cfg": None,
}
_FPN = {**_RESNET, "neck.in_channels": [8, 16, 32, 64], "neck.out_channels": 32}
_DENSE = {**_FPN, "bbox_head.in_channels": 32, "bbox_head.feat_channels": 32, "bbox_head.stacked_convs": 1}
# A group of GroupNorm must hold more than one value, even of one image's one cell.
_NORMED = {**_DENSE, "bbox_head.norm_cfg": {"type": "GN", "num_groups": 8, "requires_grad": True}}
_RPN = {
    **_FPN,
    "rpn_head.in_channels": 32,
    "rpn_head.feat_channels": 32,
    "train_cfg.rpn_proposal.nms_pre": 200,
    "train_cfg.rpn_proposal.max_per_img": 60,
    "roi_head.bbox_roi_extractor.out_channels": 32,
}
_ROI = {**_RPN, "roi_head.bbox_head.in_channels": 32, "roi_head.bbox_head.fc_out_channels": 64}
_STAGES = {
    f"roi_head.bbox_head.{stage}.{name}": value
    for stage in range(3)
    for name, value in (("in_channels", 32), ("fc_out_channels", 64))
}
_SABL_HEAD = {
    "cls_in_channels": 32,
    "reg_in_channels": 32,
    "cls_out_channels": 64,
    "reg_offset_out_channels": 32,
    "reg_cls_out_channels": 32,
}
_SPARSE_HEAD = {
    "in_channels": 32,
    "feedforward_channels": 64,
    "num_heads": 4,
    "dynamic_conv_cfg.in_channels": 32,
    "dynamic_conv_cfg.feat_channels": 16,
    "dynamic_conv_cfg.out_channels": 32,
}
_SPARSE = {
    **_FPN,
    "rpn_head.num_proposals": 20,
    "rpn_head.proposal_feature_channel": 32,
    "roi_head.proposal_feature_channel": 32,
    "roi_head.bbox_roi_extractor.out_channels": 32,
    **{f"roi_head.bbox_head.{stage}.{n}": v for stage in range(6) for n, v in _SPARSE_HEAD.items()},
}
_LIBRA_NECK = [
    {"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 32, "num_outs": 5},
    {"type": "BFP", "in_channels": 32, "num_levels": 5, "refine_level": 2, "refine_type": "non_local"},
]
_TRIDENT = {
    "backbone.stem_channels": 8,
    "backbone.base_channels": 16,
    # mmdet leaves TridentConv's weights as memory was, for a checkpoint to fill.
    "backbone.init_cfg": [{"type": "Kaiming", "layer": ["Conv2d", "TridentConv"]}],
    "rpn_head.in_channels": 256,
    "rpn_head.feat_channels": 32,
    "train_cfg.rpn_proposal.nms_pre": 200,
    "train_cfg.rpn_proposal.max_per_img": 60,
    "roi_head.shared_head.depth": 18,
    "roi_head.shared_head.init_cfg": None,
    "roi_head.bbox_roi_extractor.out_channels": 256,
    "roi_head.bbox_roi_extractor.roi_layer.output_size": 4,
    "roi_head.bbox_head.in_channels": 512,
    "roi_head.bbox_head.roi_feat_size": 2,
}
_RECURSIVE = {
    **_RPN,
    **_STAGES,
    "backbone.depth": 50,
    "neck.in_channels": [32, 64, 128, 256],
    "neck.aspp_out_channels": 8,
    "neck.rfp_backbone.rfp_inplanes": 32,
    "neck.rfp_backbone.stem_channels": 8,
    "neck.rfp_backbone.base_channels": 8,
    "neck.rfp_backbone.pretrained": None,
}
_CSP = {
    "backbone.deepen_factor": 0.167,
    "backbone.widen_factor": 0.125,
    "neck.out_channels": 32,
    "neck.num_csp_blocks": 1,
}

# name: (stock config, options below `model.`)
FAMILIES: dict[str, tuple[str, Options]] = {
    "atss": ("atss/atss_r50_fpn_1x_coco.py", _NORMED),
    "cascade_rcnn": ("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", {**_RPN, **_STAGES}),
    "centernet": ("centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py", _NORMED),
    "ddod": ("ddod/ddod_r50_fpn_1x_coco.py", _NORMED),
    "double_head": (
        "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
        {
            **_RPN,
            "roi_head.bbox_head.in_channels": 32,
            "roi_head.bbox_head.conv_out_channels": 64,
            "roi_head.bbox_head.fc_out_channels": 64,
            "roi_head.bbox_head.num_convs": 1,
        },
    ),
    "foveabox": ("foveabox/fovea_r50_fpn_4xb4-1x_coco.py", _NORMED),
    "fsaf": ("fsaf/fsaf_r50_fpn_1x_coco.py", _DENSE),
    "ga_retinanet": ("guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py", _DENSE),
    "gfl": ("gfl/gfl_r50_fpn_1x_coco.py", _NORMED),
    "grid_rcnn": (
        "grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py",
        {
            **_ROI,
            "train_cfg.rcnn.max_num_grid": 8,
            "roi_head.grid_roi_extractor.out_channels": 32,
            "roi_head.grid_head.in_channels": 32,
            "roi_head.grid_head.point_feat_channels": 8,
            "roi_head.grid_head.num_convs": 1,
            "roi_head.grid_head.norm_cfg": {"type": "GN", "num_groups": 8},
        },
    ),
    "htc": ("htc/htc_r50_fpn_1x_coco.py", {**_RPN, **_STAGES}),
    "mask_rcnn": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", _ROI),
    "paa": ("paa/paa_r50_fpn_1x_coco.py", _NORMED),
    "reppoints": (
        "reppoints/reppoints-moment_r50_fpn_1x_coco.py",
        {**_DENSE, "bbox_head.point_feat_channels": 32},
    ),
    "retinanet": ("retinanet/retinanet_r50_fpn_1x_coco.py", _DENSE),
    "rtmdet": (
        "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
        {
            **_CSP,
            "backbone.init_cfg": None,
            "neck.in_channels": [32, 64, 128],
            "bbox_head.in_channels": 32,
            "bbox_head.feat_channels": 32,
            "bbox_head.stacked_convs": 1,
        },
    ),
    "sabl_faster_rcnn": (
        "sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py",
        {**_RPN, **{f"roi_head.bbox_head.{name}": value for name, value in _SABL_HEAD.items()}},
    ),
    "scnet": ("scnet/scnet_r50_fpn_1x_coco.py", {**_RPN, **_STAGES}),
    "sparse_rcnn": ("sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py", _SPARSE),
    "tood": ("tood/tood_r50_fpn_1x_coco.py", {**_NORMED, "bbox_head.stacked_convs": 2}),
    "vfnet": ("vfnet/vfnet_r50_fpn_1x_coco.py", _NORMED),
    "yolof": (
        "yolof/yolof_r50-c5_8xb8-1x_coco.py",
        {
            **_RESNET,
            "neck.in_channels": 64,
            "neck.out_channels": 32,
            "neck.block_mid_channels": 16,
            "bbox_head.in_channels": 32,
        },
    ),
    "yolox": (
        "yolox/yolox_tiny_8xb8-300e_coco.py",
        {
            **_CSP,
            "neck.in_channels": [32, 64, 128],
            "bbox_head.in_channels": 32,
            "bbox_head.feat_channels": 32,
        },
    ),
}
# Too slow for the gate, and no path of their own.
SLOW: dict[str, tuple[str, Options]] = {
    "detectors": ("detectors/detectors_cascade-rcnn_r50_1x_coco.py", _RECURSIVE),
    "dynamic_rcnn": ("dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py", _ROI),
    "free_anchor": ("free_anchor/freeanchor_r50_fpn_1x_coco.py", _DENSE),
    "libra_rcnn": (
        "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py",
        {**{k: v for k, v in _ROI.items() if not k.startswith("neck.")}, "neck": _LIBRA_NECK},
    ),
    "pisa_retinanet": ("pisa/retinanet-r50_fpn_pisa_1x_coco.py", _DENSE),
    "queryinst": ("queryinst/queryinst_r50_fpn_1x_coco.py", _SPARSE),
    "sabl_cascade_rcnn": (
        "sabl/sabl-cascade-rcnn_r50_fpn_1x_coco.py",
        {
            **_RPN,
            **{f"roi_head.bbox_head.{stage}.{n}": v for stage in range(3) for n, v in _SABL_HEAD.items()},
        },
    ),
    "sabl_retinanet": ("sabl/sabl-retinanet_r50_fpn_1x_coco.py", _DENSE),
    "ssd": ("ssd/ssd300_coco.py", {"backbone.init_cfg": None}),
    "tridentnet": ("tridentnet/tridentnet_r50-caffe_1x_coco.py", _TRIDENT),
}
# Fine-tuned only: they do not convert.
OTHERS: dict[str, tuple[str, Options]] = {
    "autoassign": ("autoassign/autoassign_r50-caffe_fpn_1x_coco.py", _DENSE),
}
# What a family needs of PRETRAIN that others do not.
_PARTICULAR: dict[str, Options] = {
    # Fewer proposals than learned ones.
    "queryinst": {"proposals_per_image": 12},
    "sparse_rcnn": {"proposals_per_image": 12},
    # Its last levels have no cell left of a smaller image.
    "ssd": {"views": {"short_sides": (272,), "long_side": 512}},
}


def tiny_run(name: str) -> RunConfig:
    """The family's stock config, made small."""
    return load_run_config(_path(name), PRETRAIN | _PARTICULAR.get(name, {}), _options(name))


def tiny_stock(name: str) -> Options:
    """Its ``model`` alone, also of a detector that does not convert; no masks, as in fine-tuning."""
    model = read_config(_path(name), _options(name)).model.to_dict()
    model.get("roi_head", {}).pop("mask_head", None)
    return model


def _options(name: str) -> Options:
    return {f"model.{key}": value for key, value in (FAMILIES | SLOW | OTHERS)[name][1].items()}


def _path(name: str) -> Path:
    spec = find_spec("mmdet")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / ".mim" / "configs" / (FAMILIES | SLOW | OTHERS)[name][0]
