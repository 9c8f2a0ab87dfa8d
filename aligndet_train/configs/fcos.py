"""FCOS, ResNet-50-FPN: AlignDet's released recipe on mmdet's stock config (METHOD section 6).

aligndet pretrain --detector fcos --data OUT --work-dir W
"""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"

pretrain = dict(
    epochs=12,
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),
    clip_grad=35.0,  # of the stock config
    sampled_boxes=2048,
    proposals_per_image=None,
)
