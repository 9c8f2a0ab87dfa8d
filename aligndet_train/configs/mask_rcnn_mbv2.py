"""Mask R-CNN, MobileNet v2. Values: github.com/liming-ai/AlignDet, other_backbones/selfsup/selfsup_mask-rcnn_mbv2.py.

aligndet pretrain --detector mask_rcnn_mbv2 --data OUT --work-dir W
"""

_base_ = "./mask_rcnn.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="MobileNetV2",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://mmdet/mobilenet_v2"),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
