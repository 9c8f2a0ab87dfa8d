"""Deformable DETR for pictures of 160 px, cheap enough for one core: levels from stride 16, three layers, 100 queries.

Passed by benchmarks/transfer.py to `aligndet pretrain --config` and `aligndet finetune --config`.
"""

_base_ = "../../aligndet_train/configs/deformable_detr_lite0.py"

_levels = dict(num_levels=3)
_ffn = dict(feedforward_channels=512)

model = dict(
    num_queries=100,
    num_feature_levels=3,
    backbone=dict(out_indices=(3, 4), feature_scale=(5.7, 2.5), frozen_stages=2),
    neck=dict(in_channels=[112, 320], num_outs=3),
    encoder=dict(num_layers=3, layer_cfg=dict(self_attn_cfg=_levels, ffn_cfg=_ffn)),
    decoder=dict(num_layers=3, layer_cfg=dict(cross_attn_cfg=_levels, ffn_cfg=_ffn)),
)
