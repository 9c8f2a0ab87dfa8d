"""Under autocast boxes keep their pixels, and nothing runs that CUDA's autocast refuses."""

import dataclasses
from pathlib import Path

import pytest
import torch
from mmdet.models.layers.transformer import dab_detr_layers
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from mmengine.logging import MessageHub

from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.config import load_run_config
from aligndet_train.detectors.float32 import keep_sensitive_float32
from aligndet_train.preprocess import InputSpec, TwoViewPreprocessor
from tests.aligndet_train.cuda_refusals import RefusalsOfCuda
from tests.aligndet_train.detectors_zoo import tiny_run, tiny_stock
from tests.aligndet_train.test_views import SMALL

CONFIGS = Path(__file__).parents[1] / "configs"


def bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def assert_finite(losses):
    values = [v for value in losses.values() for v in (value if isinstance(value, list) else [value])]
    assert values
    assert all(torch.isfinite(value).all() for value in values)


def pooled_boxes(detector):
    """A list that gets the boxes [R, 5] of every call of a RoI layer."""
    seen = []
    layers = [
        layer
        for part in detector.modules()
        if isinstance(part, BaseRoIExtractor)
        for layer in part.roi_layers
    ]
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].detach()))
    return seen


def assert_exact(boxes):
    corners = torch.cat(boxes)
    assert corners.dtype == torch.float32
    assert not torch.equal(corners, corners.bfloat16().float()), "rounded before they were widened"


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_rcnn", "htc", "sparse_rcnn"])
def test_roi_heads_pool_unrounded_boxes_in_pretraining(name, samples):
    run = tiny_run(name)
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    seen = pooled_boxes(model.student)
    with bfloat16():
        losses = model(**model.data_preprocessor(samples(0, 3), True))
    assert_exact(seen)
    assert_finite(losses)


def stock_losses(name, samples):
    """Losses of the stock detector under autocast, on two photographs whose boxes are all of the first class."""
    model = tiny_stock(name)
    spec = InputSpec.from_stock(model["data_preprocessor"])
    views = TwoViewPreprocessor(spec, SMALL, seed=0)(samples(0, 3))["views"]
    inputs, targets = views[0]
    for target in targets:
        target.gt_instances = target.gt_instances[:8]
        target.gt_instances.labels = torch.zeros_like(target.gt_instances.labels)
    detector = build_detector(model).train()
    detector.init_weights()
    keep_sensitive_float32(detector)
    seen = pooled_boxes(detector)
    with bfloat16(), RefusalsOfCuda():
        assert_finite(detector.loss(inputs, targets))
    return seen


@pytest.mark.parametrize("name", ["cascade_rcnn", "sparse_rcnn"])
def test_roi_heads_pool_unrounded_boxes_in_fine_tuning(name, samples):
    assert_exact(stock_losses(name, samples))


def test_losses_of_probabilities_are_computed_outside_of_autocast(samples):
    """FreeAnchor and AutoAssign compute them in the head, TOOD in its loss modules."""
    MessageHub.get_current_instance().update_info("epoch", 0)
    for name in ("tood", "free_anchor", "autoassign"):
        stock_losses(name, samples)
    MessageHub.get_current_instance().update_info("epoch", 100)
    stock_losses("tood", samples)


def test_tood_samples_its_boxes_unrounded():
    head = build_detector(tiny_stock("tood")).bbox_head
    keep_sensitive_float32(head)
    generator = torch.Generator().manual_seed(0)
    boxes = 150 + torch.rand(1, 4, 6, 6, generator=generator)
    offsets = torch.zeros(1, 8, 6, 6)
    with bfloat16():
        sampled = head.deform_sampling(boxes, offsets.bfloat16())
    assert sampled.dtype == torch.float32
    assert torch.equal(sampled, head.deform_sampling(boxes, offsets))
    assert (sampled - boxes).abs().max() < 1e-4


def test_dab_detr_moves_its_reference_points_in_float32(samples, monkeypatch):
    run = load_run_config(CONFIGS / "tiny_dab_detr.py", {}, {})
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    seen, encoded = [], dab_detr_layers.coordinate_to_encoding

    def watched(coord_tensor, **more):
        seen.append(coord_tensor.dtype)
        return encoded(coord_tensor=coord_tensor, **more)

    monkeypatch.setattr(dab_detr_layers, "coordinate_to_encoding", watched)
    with bfloat16():
        assert_finite(model(**model.data_preprocessor(samples(0, 3), True)))
    assert len(seen) > 1
    assert set(seen) == {torch.float32}


def test_ddq_pretrains_where_cuda_would_refuse(samples):
    run = load_run_config(CONFIGS / "tiny_ddq.py", {"classes": 5}, {})
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    batch = [dataclasses.replace(s, boxes=s.boxes[:8], clusters=torch.arange(8) % 5) for s in samples(0, 3)]
    with bfloat16(), RefusalsOfCuda():
        assert_finite(model(**model.data_preprocessor(batch, True)))
