"""Samplers: an image's draws are its own, and every box is as likely as another."""

import numpy as np
import torch
from mmdet.models.task_modules import AssignResult, MaxIoUAssigner, RandomSampler
from mmdet.models.task_modules.samplers import IoUBalancedNegSampler
from mmengine.structures import InstanceData

from aligndet_train.equals.install import put_equals_in_place
from aligndet_train.equals.max_iou import LooplessMaxIoUAssigner
from aligndet_train.equals.sampling import SAMPLING_SEED, DeviceRandomSampler, per_image


def image(seed, boxes=200):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand((boxes, 2), generator=generator) * 50
    priors = torch.cat([corners, corners + 10], dim=1)
    gt = InstanceData(metainfo={SAMPLING_SEED: 1000 + seed}, bboxes=priors[:5], labels=torch.arange(5))
    assigned = torch.randint(0, 6, (boxes,), generator=generator)
    overlaps = torch.rand(boxes, generator=generator)
    return AssignResult(5, assigned, overlaps, labels=assigned - 1), InstanceData(priors=priors), gt


def test_an_image_is_sampled_alike_in_any_company():
    for sampler in (
        RandomSampler(num=64, pos_fraction=0.5, add_gt_as_proposals=False),
        IoUBalancedNegSampler(num=64, pos_fraction=0.5, add_gt_as_proposals=False),
    ):
        per_image(sampler)
        per_image(sampler)

        def drawn(*seeds, sampler=sampler):
            results = [sampler.sample(*image(seed)) for seed in seeds]
            return [torch.cat([r.pos_inds, r.neg_inds]).tolist() for r in results]

        alone = drawn(2)
        assert drawn(0, 1, 2)[2] == alone[0]
        assert drawn(2, 0)[0] == alone[0]
        assert drawn(3) != alone


class OwnChoice(RandomSampler):
    """A user's: draws from numpy's generator."""

    def random_choice(self, gallery, num):
        return gallery[np.random.permutation(len(gallery))[:num]]


def test_a_samplers_own_way_of_drawing_is_kept_and_seeded_too():
    sampler = OwnChoice(num=64, pos_fraction=0.5, add_gt_as_proposals=False)
    assigned, boxes, gt = image(1)
    np.random.seed(gt.metainfo[SAMPLING_SEED])
    expected = sampler.sample(assigned, boxes, gt)
    per_image(sampler)
    found = sampler.sample(assigned, boxes, gt)
    assert torch.equal(found.pos_inds, expected.pos_inds)
    assert torch.equal(found.neg_inds, expected.neg_inds)


def test_an_image_without_a_seed_is_sampled_as_stock_samples_it():
    sampler = IoUBalancedNegSampler(num=64, pos_fraction=0.5, add_gt_as_proposals=False)
    per_image(sampler)
    assigned, boxes, gt = image(0)
    bare = InstanceData(bboxes=gt.bboxes, labels=gt.labels)
    assert len(sampler.sample(assigned, boxes, bare).pos_inds) == 32


def test_draws_on_the_device_are_uniform_and_distinct():
    sampler = DeviceRandomSampler(num=1, pos_fraction=0.5)
    torch.manual_seed(0)
    gallery = torch.arange(100, 120)
    counts = torch.zeros(20)
    for _ in range(2000):
        chosen = sampler.random_choice(gallery, 5)
        assert len(chosen.unique()) == 5
        counts[chosen - 100] += 1
    # 2000 draws of probability 1/4: five standard deviations are 97.
    assert ((counts - 500).abs() < 97).all()


def test_an_assigner_of_its_own_is_left_alone():
    own = type("Own", (MaxIoUAssigner,), {})
    head = torch.nn.Module()
    head.assigner = own(0.5, 0.4)
    put_equals_in_place(head)
    assert type(head.assigner) is own


def test_samplers_can_be_left_alone():
    head = torch.nn.Module()
    head.sampler, head.assigner = RandomSampler(num=1, pos_fraction=0.5), MaxIoUAssigner(0.5, 0.4)
    put_equals_in_place(head, samplers=False)
    assert (type(head.sampler), type(head.assigner)) == (RandomSampler, LooplessMaxIoUAssigner)
    put_equals_in_place(head)
    assert type(head.sampler) is not RandomSampler
