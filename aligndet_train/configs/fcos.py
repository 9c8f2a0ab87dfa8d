"""FCOS, ResNet-50-FPN: AlignDet's released recipe on mmdet's stock config.

As in the release the backbone is torchvision's ResNet-50, which wants RGB, and gradients are not clipped. Values:
github.com/liming-ai/AlignDet, configs/selfsup/fcos.py and its base files.

aligndet pretrain --detector fcos --data OUT --work-dir W
"""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"

model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(style="pytorch", init_cfg=dict(checkpoint="torchvision://resnet50")),
)

pretrain = dict(
    epochs=12,
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),
    clip_grad=None,
    sampled_boxes=2048,
    proposals_per_image=None,
)
