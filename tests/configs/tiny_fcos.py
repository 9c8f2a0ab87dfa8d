"""FCOS as mmdet ships it, with widths a CPU test can afford."""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"

model = dict(
    backbone=dict(depth=18, stem_channels=8, base_channels=8, style="pytorch", init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
    bbox_head=dict(
        in_channels=32,
        feat_channels=32,
        stacked_convs=1,
        norm_cfg=dict(type="GN", num_groups=8),
        # Small images: every level must still get boxes.
        regress_ranges=((-1, 16), (16, 32), (32, 48), (48, 64), (64, 1e8)),
    ),
)
pretrain = dict(
    batch_size=2,
    warmup_steps=2,
    sampled_boxes=256,
    embed_dims=32,
    optimizer=dict(type="SGD", lr=0.08, momentum=0.9, weight_decay=1e-4),
    views=dict(short_sides=(96, 128), long_side=192),
)
