"""Faster R-CNN, ResNet-50-FPN: AlignDet's schedule and sampling on mmdet's stock config (METHOD section 6).

The release uses a Shared4Conv1FC RoI head; this is the stock Shared2FC one.

aligndet pretrain --detector faster_rcnn --data OUT --work-dir W
"""

_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"

pretrain = dict(
    epochs=12,
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    proposals_per_image=None,
)
