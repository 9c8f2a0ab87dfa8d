"""A class has several names in mmdet configs: bare, with a scope, imported. All mean the same detector."""

import sys
import types

import pytest
import torch
from mmengine.registry import MODELS, Registry

from aligndet_train.box_domain import build_pretrainer
from aligndet_train.config import load_run_config
from aligndet_train.detectors import adapter_for
from aligndet_train.detectors.class_names import with_registered_names
from aligndet_train.export import exported_state
from proposals.errors import AlignDetError

PLAIN = "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
SCOPED = """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    type='mmdet.FasterRCNN',
    backbone=dict(type='mmdet.ResNet'),
    roi_head=dict(bbox_head=dict(type='mmdet.Shared2FCBBoxHead')),
)
"""
# mmengine's pure-Python style, which starts at an import of classes.
IMPORTED = """
from mmcv.ops import RoIAlign, nms
from mmdet.models import (
    FPN, DetDataPreprocessor, FasterRCNN, ResNet, RPNHead, Shared2FCBBoxHead, SingleRoIExtractor, StandardRoIHead,
)
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler
from mmengine.config import read_base
from torch.nn import BatchNorm2d
from torch.optim import SGD

model = dict(
    type=FasterRCNN,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0], pad_size_divisor=32),
    backbone=dict(
        type=ResNet, depth=18, stem_channels=8, base_channels=8, norm_cfg=dict(type=BatchNorm2d, requires_grad=True)
    ),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
    rpn_head=dict(
        type=RPNHead, in_channels=16, feat_channels=16,
        anchor_generator=dict(type=AnchorGenerator, scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss),
    ),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=dict(
            type=SingleRoIExtractor, roi_layer=dict(type=RoIAlign, output_size=7, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type=Shared2FCBBoxHead, in_channels=16, fc_out_channels=16, num_classes=80,
            bbox_coder=dict(type=DeltaXYWHBBoxCoder),
            loss_cls=dict(type=CrossEntropyLoss),
            loss_bbox=dict(type=L1Loss),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type=RandomSampler, num=256, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=100, max_per_img=30, nms=dict(type=nms, iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type=RandomSampler, num=512, pos_fraction=0.25), pos_weight=-1,
        ),
    ),
    test_cfg=dict(rpn=None, rcnn=None),
)
pretrain = dict(embed_dims=8, optimizer=dict(type=SGD, lr=0.5), views=dict(short_sides=(96,), long_side=128))
"""  # fmt: skip


def loaded(tmp_path, text):
    path = tmp_path / "theirs.py"
    path.write_text(text)
    return load_run_config(path, {}, {})


def test_a_scope_changes_nothing_of_a_run(tmp_path):
    assert loaded(tmp_path, SCOPED).pretrain == loaded(tmp_path, PLAIN).pretrain


def test_a_config_of_imported_classes_pretrains_and_is_exported(tmp_path, samples):
    run = loaded(tmp_path, IMPORTED)
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    losses = model(**model.data_preprocessor(samples(0), True))
    assert torch.isfinite(model.parse_losses(losses)[0])
    # Of a checkpoint's config only registered names are built.
    exported, stock = exported_state(
        {"identity": {"stock_model": run.stock_model}, "model": model.state_dict()}, keep_predictors=False
    )
    assert exported.keys() <= stock.keys()
    kinds = {run.stock_model["type"], run.stock_model["backbone"]["norm_cfg"]["type"]}
    kinds.add(run.stock_model["roi_head"]["bbox_roi_extractor"]["roi_layer"]["type"])
    assert kinds == {"FasterRCNN", "BN", "RoIAlign"}
    # Of the family's type, so it keeps what else the family says.
    assert run.pretrain.optimizer == {"type": "SGD", "lr": 0.5, "momentum": 0.9, "weight_decay": 1e-4}


def test_a_class_of_the_users_own_scope_keeps_it():
    theirs = Registry("model", parent=MODELS, scope="own_scope")
    module = types.ModuleType("own_scope")
    try:
        module.OwnNet = theirs.register_module(name="OwnNet", module=type("OwnNet", (torch.nn.Identity,), {}))
        sys.modules["own_scope"] = module
        assert with_registered_names({"type": "own_scope.OwnNet"}) == {"type": "own_scope.OwnNet"}
    finally:
        sys.modules.pop("own_scope", None)
        MODELS.children.pop("own_scope")


def test_imported_ops_get_the_names_that_mmcv_finds_them_by():
    names = {"mmcv.ops.ModulatedDeformConv2dPack": "DCNv2", "mmcv.ops.DeformConv2dPack": "DCN",
             "mmcv.ops.RoIAlign": "RoIAlign", "mmcv.ops.nms.nms": "nms"}  # fmt: skip
    for path, name in names.items():
        assert with_registered_names({"type": path}) == {"type": name}


@pytest.mark.parametrize("prefix", ["mmdet.", "mmdet.models."])
def test_detectors_known_by_both_names_are_found_under_any(prefix):
    for detector, head in (
        ("DETR", "DETRHead"), ("CascadeRCNN", "SABLHead"), ("FasterRCNN", "BBoxHead"), ("FCOS", "FCOSHead"),
    ):  # fmt: skip
        assert type(adapter_for(prefix + detector, prefix + head)) is type(adapter_for(detector, head))
    with pytest.raises(AlignDetError, match=r"SOLO with \(none\) cannot be pretrained: it predicts masks"):
        adapter_for(f"{prefix}SOLO", "(none)")
