"""Conditional DETR, ResNet-50: the recipe that AlignDet released for DETR on mmdet's stock config.

The release has no config for it. Its class branch learns cluster ids: see docs/guides/detr-with-clusters.md.

aligndet pretrain --detector conditional_detr --data OUT --work-dir W
"""

_base_ = "mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py"
