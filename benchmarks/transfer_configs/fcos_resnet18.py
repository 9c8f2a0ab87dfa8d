"""FCOS on ResNet-18, for a backbone of `aligndet pretrain-backbone`: no layer of it is frozen in fine-tuning.

Without `transfer.py run --backbone-weights B/backbone.pth` the backbone begins at random weights.
"""

_base_ = "../../aligndet_train/configs/fcos_lite0.py"

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type="ResNet",
        depth=18,
        out_indices=(1, 2, 3),
        # Statistics of so short a pretraining do not fit the pictures of fine-tuning yet.
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
