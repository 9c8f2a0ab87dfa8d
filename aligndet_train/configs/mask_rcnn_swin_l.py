"""Mask R-CNN, Swin-L. Values: github.com/liming-ai/AlignDet, other_backbones/selfsup/selfsup_mask-rcnn_swin-l.py.

aligndet pretrain --detector mask_rcnn_swin_l --data OUT --work-dir W
"""

_base_ = "./mask_rcnn_swin_s.py"

_weights = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"

model = dict(
    backbone=dict(
        embed_dims=192,
        num_heads=[6, 12, 24, 48],
        init_cfg=dict(checkpoint=_weights + "swin_large_patch4_window7_224_22k.pth"),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
