"""Mask R-CNN, ResNet-18-FPN. Values: github.com/liming-ai/AlignDet, other_backbones/selfsup/selfsup_mask-rcnn_r18.py.

aligndet pretrain --detector mask_rcnn_r18 --data OUT --work-dir W
"""

_base_ = "./mask_rcnn.py"

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
