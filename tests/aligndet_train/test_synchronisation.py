"""On a GPU: our parts of a step never wait for it. Stock heads do, in places that docs/performance.md names."""

import dataclasses

import pytest
import torch
from mmengine.structures import InstanceData

from aligndet_train.diagnostics import embedding_diagnostics
from aligndet_train.equals.fcos_targets import DirectFCOSHead
from aligndet_train.equals.max_iou import LooplessMaxIoUAssigner
from aligndet_train.losses.contrastive import box_contrastive_loss
from aligndet_train.momentum import make_teacher, update_teacher
from aligndet_train.preprocess import TwoViewPreprocessor
from aligndet_train.views import COLOR_OPS
from tests.aligndet_train.test_views import SMALL, SPEC, sample

pytestmark = pytest.mark.gpu


@pytest.fixture
def waiting_is_an_error():
    """Warm up first: memory that the allocator must still get from the driver is not the subject."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", COLOR_OPS)
def test_two_views_are_made_without_waiting(waiting_is_an_error, op):
    preprocessor = TwoViewPreprocessor(SPEC, dataclasses.replace(SMALL, color_ops=(op,)), seed=0).cuda()
    batch = [sample(index).pin_memory() for index in range(4)]
    preprocessor(batch)
    waiting_is_an_error()
    preprocessor(batch)


def test_loss_and_diagnostics_do_not_wait(waiting_is_an_error):
    query, key = (torch.randn(300, 32, device="cuda") for _ in range(2))
    ids = [torch.randint(-1, 20, (300,), device="cuda") for _ in range(2)]
    query.requires_grad_()
    waiting_is_an_error()
    box_contrastive_loss(query, key, *ids, background=-1, temperature=0.5).backward()
    embedding_diagnostics(query, key, *ids, background=-1)


def test_the_teacher_moves_without_waiting(waiting_is_an_error):
    student = torch.nn.Module()
    student.backbone, student.neck = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    student.cuda()
    teacher = make_teacher(student)
    waiting_is_an_error()
    update_teacher(teacher, student, 0.9)


def test_assigning_does_not_wait(waiting_is_an_error):
    overlaps = torch.rand(20, 1000, device="cuda")
    labels = torch.arange(20, device="cuda")
    assigner = LooplessMaxIoUAssigner(0.7, 0.3, 0.3)
    head = DirectFCOSHead(1000, 8, feat_channels=32, stacked_convs=1).cuda()
    points = head.prior_generator.grid_priors([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], device="cuda")
    corners = torch.rand(20, 2, device="cuda") * 50
    gt = InstanceData(bboxes=torch.cat([corners, corners + 40], dim=1), labels=labels)
    ranges = torch.cat(
        [p.new_tensor(r).expand(len(p), 2) for p, r in zip(points, head.regress_ranges, strict=True)]
    )
    waiting_is_an_error()
    assigner.assign_wrt_overlaps(overlaps, labels)
    head._get_targets_single(gt, torch.cat(points), ranges, [len(p) for p in points])
