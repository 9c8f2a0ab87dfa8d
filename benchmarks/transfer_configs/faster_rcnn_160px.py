"""Faster R-CNN for pictures of 160 px, cheap enough for one core: levels from stride 8, anchors half the stock size.

Passed by benchmarks/transfer.py to `aligndet pretrain --config` and `aligndet finetune --config`.
"""

_base_ = "../../aligndet_train/configs/faster_rcnn_lite0.py"

model = dict(
    backbone=dict(out_indices=(2, 3, 4), feature_scale=(6.9, 5.7, 2.5), frozen_stages=2),
    neck=dict(in_channels=[40, 112, 320]),
    rpn_head=dict(anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64, 128])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[8, 16, 32, 64], roi_layer=dict(sampling_ratio=2))),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=300), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
