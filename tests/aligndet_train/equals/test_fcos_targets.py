"""FCOS targets against mmdet's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.dense_heads import FCOSHead
from mmengine.structures import InstanceData

from aligndet_train.equals.fcos_targets import DirectFCOSHead
from aligndet_train.equals.install import put_equals_in_place

LEVELS = [(8, (16, 20)), (16, (8, 10)), (32, (4, 5)), (64, (2, 3)), (128, (1, 2))]


def head(kind, **changes):
    return kind(num_classes=1000, in_channels=8, feat_channels=32, stacked_convs=1, **changes)


HEADS = {
    name: [head(kind, **changes) for kind in (FCOSHead, DirectFCOSHead)]
    for name, changes in {
        "plain": {},
        "centre": {"center_sampling": True, "center_sample_radius": 1.5},
        "normalised": {"norm_on_bbox": True, "center_sampling": True},
    }.items()
}


@pytest.mark.parametrize("name", HEADS)
@settings(deadline=None)
@given(boxes=st.integers(0, 12), grid=st.sampled_from([0.5, 1.0, 8.0]), seed=st.integers(0, 2**16))
def test_targets_equal_stock(name, boxes, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    # Multiples of ``grid``: edges through points, boxes of equal area.
    corners = (torch.rand((boxes, 2), generator=generator) * 100 / grid).round() * grid
    sides = (torch.rand((boxes, 2), generator=generator) * 200 / grid).round().clamp(min=1) * grid
    gt = InstanceData(bboxes=torch.cat([corners, corners + sides], dim=1), labels=torch.arange(boxes))
    stock, ours = HEADS[name]
    points = stock.prior_generator.grid_priors([shape for _, shape in LEVELS], device="cpu")
    expected, found = (each.get_targets(points, [gt, gt[:0]]) for each in (stock, ours))
    for mine, theirs in zip(found, expected, strict=True):
        for level, other in zip(mine, theirs, strict=True):
            assert torch.equal(level, other)


def test_stock_heads_are_exchanged_and_heads_that_build_on_them_are_not():
    own = type("Own", (FCOSHead,), {})
    detector = torch.nn.ModuleList([head(FCOSHead), head(own)])
    put_equals_in_place(detector)
    assert [type(each) for each in detector] == [DirectFCOSHead, own]
