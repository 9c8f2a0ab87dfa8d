"""Cascade R-CNN for pictures of 160 px, cheap enough for one core: levels from stride 8, 64 RoIs a stage and image.

Passed by `benchmarks/retrieval_curves.py --detectors benchmarks/transfer_configs/cascade_rcnn_160px.py` to `aligndet
pretrain --config`.
"""

_base_ = "../../aligndet_train/configs/cascade_rcnn_lite0.py"


def _stage(overlap: float) -> dict:
    """The stock assigner of one stage, with an eighth of the RoIs."""
    return dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=overlap, neg_iou_thr=overlap, min_pos_iou=overlap,
                      match_low_quality=False, ignore_iof_thr=-1),
        sampler=dict(type="RandomSampler", num=64, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
        pos_weight=-1,
        debug=False,
    )  # fmt: skip


model = dict(
    backbone=dict(out_indices=(2, 3, 4), feature_scale=(6.9, 5.7, 2.5), frozen_stages=2),
    neck=dict(in_channels=[40, 112, 320]),
    rpn_head=dict(anchor_generator=dict(scales=[4], strides=[8, 16, 32, 64, 128])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[8, 16, 32, 64], roi_layer=dict(sampling_ratio=2))),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=300), rcnn=[_stage(0.5), _stage(0.6), _stage(0.7)]
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
