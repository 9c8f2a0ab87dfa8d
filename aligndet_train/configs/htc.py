"""Hybrid task cascade, ResNet-50-FPN: AlignDet's released recipe on mmdet's stock config without semantic branch.

A contrastive loss at every stage, with the stage weights 1, 0.5, 0.25; stock assigners and samplers. Mask heads stay
at their initial values. Boxes are refined between stages, as in stock; in the release they are not: its code skips that
where interleaved=True, which its config says. Values: github.com/liming-ai/AlignDet, configs/selfsup/htc.py.

aligndet pretrain --detector htc --data OUT --work-dir W
"""

_base_ = "mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py"

pretrain = dict(
    epochs=12,
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    sampled_boxes=None,  # the RoI samplers take 512 an image
    proposals_per_image=None,
)
