"""DDQ as mmdet ships it, with widths a CPU test can afford."""

_base_ = "mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py"

# mmdet writes 128 features a coordinate into this decoder: no other width than 256 works.
model = dict(
    num_queries=20,
    backbone=dict(depth=18, stem_channels=8, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64], out_channels=256, norm_cfg=dict(num_groups=32)),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256), ffn_cfg=dict(embed_dims=256, feedforward_channels=64)
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256),
            cross_attn_cfg=dict(embed_dims=256),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=64),
        ),
    ),
    positional_encoding=dict(num_feats=128),
    bbox_head=dict(embed_dims=256),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=16)),
)
pretrain = dict(
    batch_size=2,
    sampled_boxes=None,
    embed_dims=32,
    proposals_per_image=8,
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4),
    views=dict(short_sides=(96, 128), long_side=192),
)
