"""DETR, ResNet-50: AlignDet's released recipe on mmdet's stock config (configs/selfsup/detr.py).

Its class branch learns cluster ids: see docs/guides/detr-with-clusters.md.

aligndet pretrain --detector detr --data OUT --work-dir W
"""

_base_ = "mmdet::detr/detr_r50_8xb2-150e_coco.py"

pretrain = dict(
    epochs=50,
    base_batch_size=64,
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4),
    warmup_steps=0,
    milestones=(40 / 50,),
    clip_grad=0.1,
    proposals_per_image=50,  # fewer than the 100 queries
)
