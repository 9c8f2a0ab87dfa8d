"""RetinaNet, ResNet-50-FPN: AlignDet's released recipe on mmdet's stock config.

Values: github.com/liming-ai/AlignDet, configs/selfsup/retinanet.py and its base files.

aligndet pretrain --detector retinanet --data OUT --work-dir W
"""

_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"

pretrain = dict(
    epochs=12,
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),
    sampled_boxes=4096,  # 2048 an image, 2 images a step: another batch size, another number
    proposals_per_image=50,
)
