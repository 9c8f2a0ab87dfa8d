"""Mask R-CNN, Swin-B. Values: github.com/liming-ai/AlignDet, other_backbones/selfsup/selfsup_mask-rcnn_swin-b.py.

aligndet pretrain --detector mask_rcnn_swin_b --data OUT --work-dir W
"""

_base_ = "./mask_rcnn_swin_s.py"

_weights = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"

model = dict(
    backbone=dict(
        embed_dims=128,
        num_heads=[4, 8, 16, 32],
        init_cfg=dict(checkpoint=_weights + "swin_base_patch4_window7_224_22k.pth"),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
