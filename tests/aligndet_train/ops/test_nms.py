import math

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, bbox_overlaps, nms, nms_match, soft_nms


def overlap(a, b, offset=0.0):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return common / (sum(areas) - common)


def greedy(boxes, scores, threshold, offset):
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        if all(overlap(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def soft_by_definition(boxes, scores, threshold, sigma, min_score, method):
    left = dict(enumerate(scores))
    order = []
    while left:
        best = max(left, key=left.get)
        order.append((best, left.pop(best)))
        for i in list(left):
            iou = overlap(boxes[best], boxes[i])
            if method == "gaussian":
                left[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                left[i] *= 0 if method == "naive" else 1 - iou
            if left[i] < min_score:
                del left[i]
    return order


@pytest.fixture
def boxes(random):
    corner = random(40, 2, low=0, high=30)
    return torch.cat([corner, corner + random(40, 2, low=5, high=25)], dim=1)


@pytest.fixture
def scores(random, boxes):
    return random(40, low=0, high=1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nms_is_the_greedy_loop(boxes, scores, offset, dtype):
    dets, kept = nms(boxes.to(dtype), scores.to(dtype), 0.3, offset=offset)
    assert kept.tolist() == greedy(boxes.tolist(), scores.tolist(), 0.3, offset)
    assert kept.device == boxes.device
    torch.testing.assert_close(dets[:, :4], boxes[kept].to(dtype))


def test_nms_takes_half_precision_and_no_boxes(boxes, scores):
    for dtype in (torch.float16, torch.bfloat16):
        rough = boxes.to(dtype)
        _, kept = nms(rough, scores.to(dtype), 0.3)
        assert kept.tolist() == nms(rough.double(), scores.to(dtype).double(), 0.3)[1].tolist()
    assert nms(boxes[:0], scores[:0], 0.3)[1].shape == (0,)


def test_batched_nms_keeps_classes_apart(boxes, scores):
    classes = torch.arange(40, device=boxes.device) % 3
    _, kept = batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.3})
    alone = []
    for c in range(3):
        mine = [i for i in range(40) if i % 3 == c]
        alone += [mine[i] for i in greedy(boxes[mine].tolist(), scores[mine].tolist(), 0.3, 0)]
    assert sorted(kept.tolist()) == sorted(alone)


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_by_definition(boxes, scores, method):
    dets, kept = soft_nms(boxes, scores, 0.3, sigma=0.5, min_score=0.05, method=method)
    wanted = soft_by_definition(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.05, method)
    assert kept.tolist() == [i for i, _ in wanted]
    torch.testing.assert_close(dets[:, 4].cpu(), torch.tensor([s for _, s in wanted], dtype=torch.float64))
    torch.testing.assert_close(dets[:, :4], boxes[kept])


def test_soft_nms_of_empty_boxes_divides_by_nothing(device):
    point = torch.ones(3, 4, device=device)
    dets, _ = soft_nms(point, torch.tensor([0.9, 0.8, 0.7], device=device))
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.8, 0.7], device=device))
    assert soft_nms(point[:0], point[:0, 0])[0].shape == (0, 5)


def test_nms_match_groups_the_suppressed_with_their_keeper(boxes, scores):
    groups = nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.3)
    assert [int(group[0]) for group in groups] == greedy(boxes.tolist(), scores.tolist(), 0.3, 0)
    assert sorted(torch.cat(groups).tolist()) == list(range(40))
    for group in groups:
        assert scores[group].tolist() == sorted(scores[group].tolist(), reverse=True)
        for i in group[1:]:
            assert overlap(boxes[group[0]].tolist(), boxes[i].tolist()) >= 0.3


def test_numpy_boxes_come_back_as_numpy(boxes, scores):
    dets, kept = nms(boxes.cpu().numpy(), scores.cpu().numpy(), 0.3)
    assert isinstance(dets, np.ndarray)
    assert isinstance(kept, np.ndarray)


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("offset", [0, 1])
def test_bbox_overlaps(boxes, mode, offset):
    first, second = boxes[:6], boxes[6:15]
    wanted = torch.tensor(
        [[overlap(a, b, offset) for b in second.tolist()] for a in first.tolist()], dtype=torch.float64
    ).to(boxes)
    if mode == "iof":
        area1, area2 = ((box[:, 2:] - box[:, :2] + offset).prod(1) for box in (first, second))
        common = wanted / (1 + wanted) * (area1[:, None] + area2)
        wanted = common / area1[:, None]
    torch.testing.assert_close(bbox_overlaps(first, second, mode, offset=offset), wanted)
    pairs = bbox_overlaps(first, second[:6], mode, aligned=True, offset=offset)
    torch.testing.assert_close(pairs, wanted[:, :6].diagonal())
