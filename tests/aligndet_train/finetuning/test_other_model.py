"""Weights of another detector of equal shapes: what computes otherwise is named, and nothing else."""

import pytest

from aligndet_train.config import load_run_config, read_config, shipped_config
from aligndet_train.finetuning.other_model import differences
from tests.aligndet_train.finetuning.test_recipe import stock

# Of detectors that ship with us: the config of mmdet's that they are.
SIBLINGS = {
    "retinanet": "retinanet/retinanet_r50_fpn_1x_coco",
    "detr": "detr/detr_r50_8xb2-150e_coco",
    "deformable_detr": "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
    "cascade_rcnn": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_mmdets_own_config_of_a_detector_is_no_other(name):
    ours = load_run_config(shipped_config(name), {}, {}).stock_model
    assert differences(ours, stock(SIBLINGS[name]).model) == []


def test_a_branch_that_is_left_out_as_advised_is_no_difference():
    whole = load_run_config(shipped_config("mask_rcnn"), {}, {}).stock_model
    without = read_config(shipped_config("mask_rcnn"), {"model.roi_head.mask_head": None}).model
    assert differences(whole, without) == []


@pytest.mark.parametrize(
    "option",
    [
        {"model.test_cfg.score_thr": 0.001},
        {"model.bbox_head.center_sampling": True},
        {"model.bbox_head.num_classes": 3},
        {"model.bbox_head.loss_bbox.loss_weight": 2.0},
        {"model.backbone.frozen_stages": -1},
    ],
)
def test_settings_of_tests_labels_and_training_are_no_differences(option):
    ours = load_run_config(shipped_config("fcos"), {}, {}).stock_model
    assert differences(ours, read_config(shipped_config("fcos"), option).model) == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"model.bbox_head.norm_on_bbox": True}, "bbox_head.norm_on_bbox: None -> True"),
        ({"model.bbox_head.strides": [4, 8, 16, 32, 64]}, "bbox_head.strides: "),
        ({"model.neck.add_extra_convs": "on_input"}, "neck.add_extra_convs: 'on_output' -> 'on_input'"),
    ],
)
def test_settings_that_change_what_is_computed_are_named(option, said):
    ours = load_run_config(shipped_config("fcos"), {}, {}).stock_model
    (line,) = differences(ours, read_config(shipped_config("fcos"), option).model)
    assert line.startswith(said)
