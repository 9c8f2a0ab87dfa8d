"""Mask R-CNN, Swin-B of SimMIM: AlignDet's other_backbones/selfsup/selfsup_mask-rcnn_swin-b_simmim.py.

The weights cannot be fetched from here: download them as github.com/microsoft/SimMIM says (Swin-B, 800 epochs).

aligndet pretrain --detector mask_rcnn_swin_b_simmim --backbone-weights FILE --data OUT --work-dir W
"""

_base_ = "./mask_rcnn_swin_b.py"

# The release's path: without --backbone-weights a run stops at it, and does not begin with random weights unnoticed.
model = dict(backbone=dict(init_cfg=dict(checkpoint="pretrain/simmim/simmim_800e_official.pth")))

# SimMIM's own rate and batch for detection (its Appendix C.1).
pretrain = dict(optimizer=dict(lr=6e-5), batch_size=4, base_batch_size=32)
