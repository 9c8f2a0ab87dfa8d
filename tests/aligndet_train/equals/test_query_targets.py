"""DETR's losses against mmdet's own, matching included."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.dense_heads import ConditionalDETRHead, DABDETRHead, DeformableDETRHead, DETRHead
from mmengine.structures import InstanceData

from aligndet_train.equals.install import put_equals_in_place
from aligndet_train.equals.query_targets import DIRECT_QUERY_HEADS

LAYERS, QUERIES, CLASSES = 3, 9, 4
SIZES = [(64, 96), (80, 48), (50, 50)]


def matched_by(class_cost):
    """A head's ``train_cfg``: mmdet's own costs of DETR."""
    costs = [
        class_cost,
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ]
    return {"assigner": {"type": "HungarianAssigner", "match_costs": costs}}


SOFTMAX = {
    "loss_cls": {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "loss_weight": 1.0, "class_weight": 1.0},
    "train_cfg": matched_by({"type": "ClassificationCost", "weight": 1.0}),
}
FOCAL = {
    "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 2.0},
    "sync_cls_avg_factor": True,
    "train_cfg": matched_by({"type": "FocalLossCost", "weight": 2.0}),
}
BUILDS = {
    DETRHead: SOFTMAX,
    ConditionalDETRHead: FOCAL,
    DABDETRHead: FOCAL,
    DeformableDETRHead: {**FOCAL, "share_pred_layer": True, "num_pred_layer": LAYERS},
}


def heads(kind):
    """A stock head, and the same after the exchange."""
    pair = [kind(num_classes=CLASSES, embed_dims=16, **copy.deepcopy(BUILDS[kind])) for _ in range(2)]
    put_equals_in_place(pair[1])
    return pair


HEADS = {kind: heads(kind) for kind in BUILDS}


def drawn(seed, counts):
    """Scores, boxes, ground truth and metas of ``len(counts)`` images."""
    generator = torch.Generator().manual_seed(seed)
    outputs = CLASSES + 1  # the last is the background's where there is a softmax
    scores = torch.randn((LAYERS, len(counts), QUERIES, outputs), generator=generator)
    boxes = torch.rand((LAYERS, len(counts), QUERIES, 4), generator=generator) * 0.6 + 0.2
    instances = []
    for count, (height, width) in zip(counts, SIZES, strict=False):
        corners = torch.rand((count, 2), generator=generator) * torch.tensor([width, height]) / 2
        sides = torch.rand((count, 2), generator=generator) * torch.tensor([width, height]) / 2 + 1
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        instances.append(InstanceData(bboxes=torch.cat([corners, corners + sides], dim=1), labels=labels))
    return scores, boxes, instances, [{"img_shape": size} for size in SIZES[: len(counts)]]


def losses(head, scores, boxes, instances, metas):
    scores = scores[..., : head.cls_out_channels].clone().requires_grad_()
    boxes = boxes.clone().requires_grad_()
    encoder = (None, None) if isinstance(head, DeformableDETRHead) else ()
    found = head.loss_by_feat(scores, boxes, *encoder, instances, metas)
    gradients = torch.autograd.grad(sum(value.sum() for value in found.values()), (scores, boxes))
    return found, gradients


def test_every_stock_head_is_exchanged():
    assert {kind: type(pair[1]) for kind, pair in HEADS.items()} == DIRECT_QUERY_HEADS


@pytest.mark.parametrize("kind", BUILDS)
@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(0, QUERIES), min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_losses_and_gradients_equal_stock(kind, counts, seed):
    (expected, expected_gradients), (found, gradients) = (
        losses(head, *drawn(seed, counts)) for head in HEADS[kind]
    )
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # Stock's class loss is a scalar or one row, depending on the count.
        torch.testing.assert_close(found[name].sum(), value.sum(), rtol=1e-6, atol=0)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def assigner_of(head):
    return head.assigner


def cost_of(head):
    return head.assigner.match_costs[0]


@pytest.mark.parametrize("part", [assigner_of, cost_of])
def test_a_matching_of_its_own_is_left_alone(part):
    head = DETRHead(num_classes=CLASSES, embed_dims=16, **copy.deepcopy(SOFTMAX))
    own = part(head)
    own.__class__ = type("Own", (type(own),), {})
    put_equals_in_place(head)
    assert type(head) is DETRHead


def test_heads_with_a_loss_that_scores_overlaps_and_heads_that_build_on_stock_are_left_alone():
    quality = {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0}
    own = type("Own", (DeformableDETRHead,), {})
    for kind, changes in ((DeformableDETRHead, {"loss_cls": quality}), (own, {})):
        head = kind(num_classes=CLASSES, embed_dims=16, **copy.deepcopy(BUILDS[DeformableDETRHead] | changes))
        put_equals_in_place(head)
        assert type(head) is kind
