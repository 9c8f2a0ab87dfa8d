"""The order of samples: every image once an epoch, the same global batches for any number of ranks."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from aligndet_train.stream import EpochOrder, ProposalStream, StepSampler, StreamState
from proposals.dataset import open_dataset
from proposals.dataset.clusters import Clusters
from proposals.errors import AlignDetError

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda s: sum(s) > 0)
GLOBAL_BATCH = 8
RANKS = (1, 2, 4, 8)
BEGIN = StreamState(3, 0, 0)


def ordered(sizes, seed, epoch, window=8):
    order = EpochOrder(sizes, seed, epoch, window)
    return [order[position] for position in range(len(order))]


def split(images, shards):
    """``shards`` sizes that add up to ``images``; some are 0 when there are more shards than images."""
    return [images // shards + (shard < images % shards) for shard in range(shards)]


def rank_batches(sizes, steps, ranks, start=BEGIN, workers=0):
    """Global batches, put together from what every rank's DataLoader hands out; and the state they end in."""
    parts = []
    for rank in range(ranks):
        sampler = StepSampler(
            sizes, start=start, batch_size=GLOBAL_BATCH // ranks, steps=steps, rank=rank, world_size=ranks
        )
        loader = DataLoader(Echo(), batch_sampler=sampler, num_workers=workers, collate_fn=list)
        parts.append(list(loader))
        assert len(parts[-1]) == len(sampler) == steps
    return [list(chain.from_iterable(step)) for step in zip(*parts, strict=True)], sampler.state_after(steps)


class Echo(Dataset):
    """Hands out what it is asked for."""

    def __getitem__(self, position):
        return position


@given(sizes=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 5), window=st.integers(1, 5))
def test_order_is_a_permutation_and_a_pure_function(sizes, seed, epoch, window):
    order = ordered(sizes, seed, epoch, window)
    assert sorted(order) == list(range(sum(sizes)))
    assert [EpochOrder(sizes, seed, epoch, window)[p] for p in reversed(range(len(order)))] == order[::-1]
    with pytest.raises(IndexError):
        EpochOrder(sizes, seed, epoch, window)[len(order)]
    with pytest.raises(IndexError):
        EpochOrder(sizes, seed, epoch, window)[-1]


def test_order_changes_with_epoch_and_seed():
    orders = {tuple(ordered([50, 50], seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_images_are_not_shuffled_as_their_shards_were():
    # One permutation done twice would never exchange just two of three.
    orders = Counter(tuple(ordered([1, 1, 1], seed, epoch=0)) for seed in range(600))
    assert len(orders) == 6
    assert min(orders.values()) > 60


def test_a_window_opens_few_shards_at_a_time():
    order = ordered([10] * 12, seed=0, epoch=0, window=3)
    for first in range(0, 120, 30):
        assert len({index // 10 for index in order[first : first + 30]}) == 3


def test_no_two_windows_are_shuffled_alike():
    order = ordered([30] * 6, seed=0, epoch=0, window=1)
    assert len({tuple(index % 30 for index in order[first : first + 30]) for first in range(0, 180, 30)}) == 6


@given(sizes=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 5), window=st.integers(1, 5))
def test_steps_go_through_the_orders_of_the_states_seed_one_epoch_after_another(sizes, seed, epoch, window):
    start = StreamState(seed, epoch, 0)
    sampler = StepSampler(sizes, start=start, batch_size=2, steps=sum(sizes), window=window)
    expected = [(e, index) for e in (epoch, epoch + 1) for index in ordered(sizes, seed, e, window)]
    assert list(chain.from_iterable(sampler)) == expected


def test_what_to_fetch_is_told_anew_every_epoch_also_of_a_single_window():
    told = []
    list(StepSampler([4, 4], start=BEGIN, batch_size=2, steps=12, expect=told.append))
    assert [sorted(shards) for shards in told] == [[0, 0, 1, 1]] * 3


@pytest.mark.parametrize("shards", [1, 3, 40])
@pytest.mark.parametrize("images", [1, 7, 1000])
def test_every_image_once_an_epoch_in_the_same_global_batches_for_any_ranks(images, shards):
    sizes, steps = split(images, shards), 2 * images // GLOBAL_BATCH + 1
    one, _ = rank_batches(sizes, steps, ranks=1)
    seen = list(chain.from_iterable(one))
    for epoch in (0, 1):
        assert sorted(i for e, i in seen[: 2 * images] if e == epoch) == list(range(images))
    assert all(rank_batches(sizes, steps, ranks)[0] == one for ranks in RANKS)


@pytest.mark.parametrize("shards", [1, 3, 40])
@pytest.mark.parametrize("images", [1, 7, 1000])
def test_stopped_at_any_step_and_resumed_on_other_ranks_the_order_goes_on(images, shards):
    sizes, steps = split(images, shards), min(2 * images // GLOBAL_BATCH + 3, 30)
    # Begin shortly before the epoch's end, so that every run crosses it.
    begin = StreamState(3, 4, max(0, images - 10 * GLOBAL_BATCH - 3))
    whole, _ = rank_batches(sizes, steps, ranks=1, start=begin)
    assert {epoch for epoch, _ in chain.from_iterable(whole)} >= {4, 5}
    for stop, before, after in [(s, RANKS[s % 4], RANKS[(s * 7 + 1) % 4]) for s in range(steps + 1)]:
        first, state = rank_batches(sizes, stop, before, begin)
        second, _ = rank_batches(sizes, steps - stop, after, state)
        assert first + second == whole


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("images", [1, 7, 1000])
def test_workers_change_nothing(images, workers):
    sizes, start = split(images, 3), StreamState(3, 1, images // 2)
    assert rank_batches(sizes, 9, 2, start, workers) == rank_batches(sizes, 9, 2, start)


@given(sizes=sizes, steps=st.integers(0, 30), images=st.integers(1, 5))
def test_the_state_after_some_steps_is_the_state_after_the_rest(sizes, steps, images):
    def after(start, count):
        return StepSampler(sizes, start=start, batch_size=images, steps=count).state_after(count)

    begin = StreamState(0, 0, 0)
    halfway = after(begin, steps // 2)
    assert 0 <= halfway.position < sum(sizes)
    assert after(halfway, steps - steps // 2) == after(begin, steps)


def test_empty_dataset_is_refused():
    with pytest.raises(AlignDetError, match="no image"):
        StepSampler([0], start=StreamState(0, 0, 0), batch_size=1, steps=1)


def test_sample_holds_the_image_and_its_best_boxes(mined_dataset):
    dataset = open_dataset(mined_dataset)
    sample = ProposalStream(dataset, proposals_per_image=7)[(2, 5)]
    record = dataset[5]
    assert sample.image.dtype == torch.uint8
    assert sample.image.shape == (3, record.height, record.width)
    assert np.array_equal(sample.boxes.numpy(), record.boxes[:7])
    assert (sample.key, sample.epoch, sample.index) == (record.key, 2, 5)


def test_boxes_come_with_their_own_clusters_counted_from_zero(mined_dataset):
    dataset = open_dataset(mined_dataset)
    ids = np.arange(dataset.manifest.totals.proposals) % 50 + 1
    stream = ProposalStream(dataset, 7, Clusters(50, ids, np.zeros(len(ids), np.float32)))
    first = 0
    for index, record in enumerate(dataset):
        assert (
            stream[(0, index)].clusters.tolist() == (ids[first : first + len(record.boxes)][:7] - 1).tolist()
        )
        first += len(record.boxes)
