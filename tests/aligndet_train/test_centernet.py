"""CenterNet's updated head: ids by regression targets, box losses as stock computes them."""

import copy

import pytest
import torch

from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.detectors import BACKGROUND
from tests.aligndet_train.detectors_zoo import tiny_run


@pytest.fixture(params=[False, True], ids=["hard", "soft_weight_on_reg"])
def built(request):
    run = tiny_run("centernet")
    run.stock_model["bbox_head"]["soft_weight_on_reg"] = request.param
    return run, build_pretrainer(run.stock_model, run.pretrain).train()


def stock_detector(run, model):
    detector = build_detector(run.stock_model)
    kept = {n: v for n, v in model.student.state_dict().items() if not n.startswith("bbox_head.conv_cls.")}
    detector.load_state_dict(kept, strict=False)
    detector.train().backbone.eval()
    return detector


def of_one_class(targets):
    targets = copy.deepcopy(targets)
    for target in targets:
        target.gt_instances.labels[:] = 0
    return targets


def test_a_point_has_the_id_of_the_box_that_its_regression_target_came_from(built, samples):
    run, model = built
    inputs, targets = model.data_preprocessor(samples(0, 3), True)["views"][0]
    model.student.loss(inputs, targets)
    (reading,) = model.adapter.read(model.student)
    detector = stock_detector(run, model)
    head = detector.bbox_head
    levels = [level.shape[-2:] for level in detector.extract_feat(inputs)]
    points = head.prior_generator.grid_priors(levels, device="cpu")
    _, distances = head.get_targets(points, [t.gt_instances for t in of_one_class(targets)])
    strides = torch.cat(
        [torch.full((len(targets) * len(p), 1), s) for p, s in zip(points, head.strides, strict=True)]
    )
    points = torch.cat([level.repeat(len(targets), 1) for level in points])
    positive = reading.ids != BACKGROUND
    assert torch.equal(positive, distances.amax(dim=1) >= 0)
    assert positive.sum() > 20
    box_of = {
        int(i): box
        for t in targets
        for i, box in zip(t.gt_instances.labels, t.gt_instances.bboxes, strict=True)
    }
    boxes = torch.stack([box_of[int(i)] for i in reading.ids[positive]])
    points, strides = points[positive], strides[positive]
    own = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1) / strides
    assert torch.allclose(own, distances[positive], atol=1e-4)


def test_the_box_loss_is_that_of_the_stock_head(built, samples):
    run, model = built
    inputs, targets = model.data_preprocessor(samples(0, 3), True)["views"][0]
    detector = stock_detector(run, model)
    with torch.no_grad():
        for student in (model.student, detector):
            # Untrained, it predicts boxes of no size, and the loss of each is the same.
            student.bbox_head.conv_reg.bias.fill_(2.0)
        ours, stock = model.student.loss(inputs, targets), detector.loss(inputs, of_one_class(targets))
    assert ours["loss_bbox"].item() == pytest.approx(stock["loss_bbox"].item(), rel=1e-6)
    assert 0 < stock["loss_bbox"].item() < 2
