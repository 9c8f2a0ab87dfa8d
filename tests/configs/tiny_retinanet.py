"""RetinaNet as mmdet ships it, with widths a CPU test can afford."""

_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

model = dict(
    backbone=dict(depth=18, stem_channels=8, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
pretrain = dict(
    batch_size=2,
    warmup_steps=2,
    sampled_boxes=256,
    embed_dims=32,
    optimizer=dict(type="SGD", lr=0.08, momentum=0.9, weight_decay=1e-4),
    views=dict(short_sides=(96, 128), long_side=192),
)
