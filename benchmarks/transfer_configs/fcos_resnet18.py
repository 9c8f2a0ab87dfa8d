"""FCOS on ResNet-18, for a backbone of `aligndet pretrain-backbone`: no layer of it is frozen in fine-tuning.

It has no weights of its own: `transfer.py run --detectors fcos_resnet18 --backbone-weights B/backbone.pth`.
"""

_base_ = "../../aligndet_train/configs/fcos_lite0.py"

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type="BN", requires_grad=True),
        # Statistics of crops of objects: those of whole pictures are others.
        norm_eval=False,
        style="pytorch",
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
