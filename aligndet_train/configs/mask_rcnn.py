"""Mask R-CNN, ResNet-50-FPN: AlignDet's released recipe on mmdet's stock config.

Proposals have no masks: the mask head stays at its initial values. The RoI head is Shared4Conv1FC, as in the release.
Values: github.com/liming-ai/AlignDet, configs/selfsup/mask_rcnn.py and its base files.

aligndet pretrain --detector mask_rcnn --data OUT --work-dir W
"""

_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"

model = dict(roi_head=dict(bbox_head=dict(type="Shared4Conv1FCBBoxHead")))

# Of pretraining alone: labels are few, and sampled as in stock.
pretrain_model = dict(
    train_cfg=dict(
        rpn=dict(sampler=dict(num=4096, pos_fraction=1.0)),
        # The release's. Below an overlap of a half (min_pos_iou) no box counts, with it or without.
        rcnn=dict(assigner=dict(match_low_quality=True, gt_max_assign_all=False)),
    ),
)

pretrain = dict(
    epochs=12,
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    sampled_boxes=None,  # the RoI sampler takes 4096 an image, positives only
    proposals_per_image=None,
)
