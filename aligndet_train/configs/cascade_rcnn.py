"""Cascade R-CNN, ResNet-50-FPN: the recipe of htc.py, whose box branch this is, on mmdet's stock config.

aligndet pretrain --detector cascade_rcnn --data OUT --work-dir W
"""

_base_ = "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"

pretrain = dict(
    epochs=12,
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    sampled_boxes=None,
    proposals_per_image=None,
)
