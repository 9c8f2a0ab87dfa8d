"""Deformable DETR, ResNet-50: optimiser, schedule, clipping and best 150 proposals of AlignDet's released config.

The head is not the release's (configs/selfsup/deformable_detr.py), which has no class branch and no clusters: there the
projector takes the class branch's place, queries start from RoI features, and matching has no class cost. Here the
class branch stays and learns cluster ids, as DETR's does: see docs/guides/detr-with-clusters.md.

aligndet pretrain --detector deformable_detr --data OUT --work-dir W
"""

_base_ = "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"

pretrain = dict(
    epochs=12,
    base_batch_size=32,
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4),
    warmup_steps=0,
    milestones=(8 / 12, 11 / 12),
    clip_grad=0.1,
    proposals_per_image=150,  # fewer than the 300 queries
)
