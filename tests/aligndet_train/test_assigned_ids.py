"""From mmdet's assignment to ids: what every box is told, and that nobody waits for it."""

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmengine.structures import InstanceData

from aligndet_train.detectors.adapter import BACKGROUND, EmbeddingTap, assigned_ids
from aligndet_train.detectors.neutral import NeutralAssigner
from tests.aligndet_train.fake_gpu import WaitError, no_waits_on_a_fake_gpu


def test_background_and_ignored_boxes_have_no_proposal():
    ids = assigned_ids(torch.tensor([7, 300]), torch.tensor([2, 0, -1, 1]))
    assert ids.tolist() == [300, BACKGROUND, BACKGROUND, 7]
    nothing = assigned_ids(torch.zeros(0, dtype=torch.long), torch.tensor([0, -1]))
    assert nothing.tolist() == [BACKGROUND, BACKGROUND]


def test_a_neutral_assigner_does_not_wait_for_the_gpu():
    class Nothing:
        def assign(self, pred_instances, **_):
            boxes = torch.zeros(len(pred_instances.priors), dtype=torch.long, device="cuda")
            return AssignResult(3, boxes, boxes.float(), labels=boxes)

    with no_waits_on_a_fake_gpu():
        gt = InstanceData(
            bboxes=torch.zeros(3, 4, device="cuda"), labels=torch.zeros(3, dtype=torch.long, device="cuda")
        )
        result = NeutralAssigner(Nothing(), score=0.0).assign(
            InstanceData(priors=torch.zeros(9, 4, device="cuda")), gt
        )
    assert result.labels.shape == (9,)


def test_a_tap_leaves_ignored_rows_out():
    tap = EmbeddingTap()
    tap(torch.eye(3), torch.tensor([4, 5, 6]), torch.tensor([1.0, 0.0, 2.0]))
    reading = tap.read()
    assert reading.ids.tolist() == [4, 6]
    assert torch.equal(reading.embeddings, torch.eye(3)[[0, 2]])


def test_a_tap_waits_for_the_gpu_once_to_leave_rows_out():
    tap = EmbeddingTap()
    with no_waits_on_a_fake_gpu(but=1):
        embeddings, weight = torch.zeros(9, 4, device="cuda"), torch.ones(9, device="cuda")
        tap(embeddings, torch.zeros(9, dtype=torch.long, device="cuda"), weight)
        with pytest.raises(WaitError):
            weight.nonzero()
