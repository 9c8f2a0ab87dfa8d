"""The order of samples: every image once an epoch, the same global batches for any number of ranks."""

from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligndet_train.stream import ProposalStream, StepSampler, epoch_order
from proposals.dataset import open_dataset
from proposals.errors import AlignDetError

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda s: sum(s) > 0)


@given(sizes=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 5), window=st.integers(1, 5))
def test_order_is_a_permutation_and_a_pure_function(sizes, seed, epoch, window):
    order = epoch_order(sizes, seed, epoch, window)
    assert sorted(order) == list(range(sum(sizes)))
    assert np.array_equal(order, epoch_order(sizes, seed, epoch, window))


def test_order_changes_with_epoch_and_seed():
    orders = {tuple(epoch_order([50, 50], seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_window_opens_few_shards_at_a_time():
    order = epoch_order([10] * 12, seed=0, epoch=0, window=3)
    for first in range(0, 120, 30):
        assert len({index // 10 for index in order[first : first + 30]}) == 3


@settings(max_examples=60)
@given(sizes=sizes, per_rank=st.integers(1, 3), steps=st.integers(1, 12), start=st.integers(0, 12))
def test_ranks_slice_the_same_global_batches_and_resume_is_a_suffix(sizes, per_rank, steps, start):
    start = min(start, steps)

    def batches(world, start_step):
        ranks = [
            StepSampler(
                sizes,
                seed=1,
                batch_size=per_rank * 4 // world,
                steps=steps,
                start_step=start_step,
                rank=r,
                world_size=world,
            )
            for r in range(world)
        ]
        return [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]

    one = batches(1, 0)
    assert batches(2, 0) == batches(4, 0) == one
    assert batches(2, start) == one[start:]


@given(sizes=sizes, batch=st.integers(1, 4))
def test_every_image_once_an_epoch(sizes, batch):
    total = sum(sizes)
    sampler = StepSampler(sizes, seed=0, batch_size=batch, steps=2 * total)
    seen = list(islice(chain.from_iterable(sampler), 2 * total))
    for epoch in (0, 1):
        assert sorted(index for e, index in seen if e == epoch) == list(range(total))


def test_empty_dataset_is_refused():
    with pytest.raises(AlignDetError, match="no image"):
        StepSampler([0], seed=0, batch_size=1, steps=1)


def test_sample_holds_the_image_and_its_best_boxes(mined_dataset):
    dataset = open_dataset(mined_dataset)
    sample = ProposalStream(dataset, proposals_per_image=7)[(2, 5)]
    record = dataset[5]
    assert sample.image.dtype == torch.uint8
    assert sample.image.shape == (3, record.height, record.width)
    assert np.array_equal(sample.boxes.numpy(), record.boxes[:7])
    assert (sample.key, sample.epoch, sample.index) == (record.key, 2, 5)
