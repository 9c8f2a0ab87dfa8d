"""The loopless assigner against mmdet's own, ties and thresholds included."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.models.task_modules import MaxIoUAssigner
from mmengine.structures import InstanceData

from aligndet_train.equals.max_iou import LooplessMaxIoUAssigner

SETTINGS = [
    {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0},
    {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5, "match_low_quality": False},
    {"pos_iou_thr": 0.6, "neg_iou_thr": (0.1, 0.4), "min_pos_iou": 0.2, "gt_max_assign_all": False},
]


def equal(settings, overlaps, labels):
    expected, found = (
        kind(**settings).assign_wrt_overlaps(overlaps.clone(), labels)
        for kind in (MaxIoUAssigner, LooplessMaxIoUAssigner)
    )
    for name in ("gt_inds", "max_overlaps", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.num_gts == expected.num_gts


@pytest.mark.parametrize("settings", SETTINGS)
@given(
    gts=st.integers(0, 9),
    boxes=st.integers(0, 30),
    levels=st.integers(2, 12),
    ignored=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_assignment_equals_stock_on_any_overlaps(settings, gts, boxes, levels, ignored, seed):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values: ties, and overlaps exactly on a threshold. -1 is what mmdet writes for ignored boxes.
    overlaps = torch.randint(0, levels, (gts, boxes), generator=generator) / (levels - 1)
    if ignored:
        overlaps[:, ::3] = -1
    equal(settings, overlaps, torch.randint(0, 1000, (gts,), generator=generator))


@pytest.mark.parametrize("settings", SETTINGS)
def test_assignment_of_real_anchors_equals_stock(settings, samples):
    sample = samples(0)[0]
    height, width = sample.image.shape[1:]
    sides = torch.tensor([(w, h) for w, h in itertools.product((16, 32, 64), repeat=2)])
    centres = torch.tensor([(x, y) for y in range(0, height, 8) for x in range(0, width, 8)])
    corners = centres[:, None] - sides[None] / 2
    anchors = torch.cat([corners, corners + sides], dim=-1).reshape(-1, 4)
    gt = InstanceData(bboxes=sample.boxes, labels=torch.arange(len(sample.boxes)))
    expected, found = (
        kind(**settings).assign(InstanceData(priors=anchors), gt)
        for kind in (MaxIoUAssigner, LooplessMaxIoUAssigner)
    )
    assert (expected.gt_inds > 0).any()
    assert torch.equal(found.gt_inds, expected.gt_inds)
    assert torch.equal(found.labels, expected.labels)
