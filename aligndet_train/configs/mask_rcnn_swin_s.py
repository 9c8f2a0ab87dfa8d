"""Mask R-CNN, Swin-S. Values: github.com/liming-ai/AlignDet, other_backbones/selfsup/selfsup_mask-rcnn_swin-s.py.

aligndet pretrain --detector mask_rcnn_swin_s --data OUT --work-dir W
"""

_base_ = "./mask_rcnn.py"

_weights = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"

model = dict(
    backbone=dict(
        _delete_=True,
        type="SwinTransformer",
        embed_dims=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        drop_path_rate=0.2,
        convert_weights=True,
        init_cfg=dict(type="Pretrained", checkpoint=_weights + "swin_small_patch4_window7_224.pth"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

pretrain = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    warmup_steps=1000,
)
