"""The boxes that enter the contrastive loss: as many as asked for, and of the same proposals in both views."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligndet_train import sampling
from aligndet_train.sampling import sample_both_views

BACKGROUND = 2**31 - 1
_IDS = st.lists(st.one_of(st.integers(0, 40), st.just(BACKGROUND)), max_size=120)


def sample(query, key, limit, share=0.25):
    views = torch.tensor(query, dtype=torch.long), torch.tensor(key, dtype=torch.long)
    rows = sample_both_views(*views, limit, background=BACKGROUND, background_share=share)
    return [(ids, row, ids[row]) for ids, row in zip(views, rows, strict=True)]


def proposals(ids):
    return set(ids[ids != BACKGROUND].tolist())


@given(_IDS, _IDS, st.integers(1, 130), st.floats(0, 1))
def test_each_view_gives_as_many_rows_as_fit_and_none_twice(query, key, limit, share):
    for ids, rows, kept in sample(query, key, limit, share):
        assert len(rows) == len(set(rows.tolist())) == min(limit, len(ids))
        if len(ids) <= limit:
            assert torch.equal(kept, ids)


@given(_IDS, _IDS, st.integers(1, 130), st.floats(0, 1))
def test_background_has_its_share_and_takes_the_place_of_positives_that_are_not_there(
    query, key, limit, share
):
    for ids, _, kept in sample(query, key, limit, share):
        there = (ids == BACKGROUND).sum().item()
        least = limit - (len(ids) - there)
        expected = min(there, max(least, round(limit * share))) if len(ids) > limit else there
        assert abs((kept == BACKGROUND).sum().item() - expected) <= 1


@given(_IDS, _IDS, st.integers(1, 130))
def test_a_proposal_of_one_view_alone_waits_for_those_of_both(query, key, limit):
    both = proposals(torch.tensor(query)) & proposals(torch.tensor(key))
    for ids, _, kept in sample(query, key, limit, share=0.0):
        if len(ids) > limit and proposals(kept) - both:
            found = torch.isin(ids, torch.tensor(sorted(both), dtype=torch.long))
            assert found.sum() == torch.isin(kept, torch.tensor(sorted(both), dtype=torch.long)).sum()


@given(_IDS, _IDS, st.integers(1, 130))
def test_no_proposal_has_a_second_box_before_every_one_has_its_first(query, key, limit):
    both = proposals(torch.tensor(query)) & proposals(torch.tensor(key))
    for ids, _, kept in sample(query, key, limit):
        counts = torch.bincount(kept[kept != BACKGROUND])
        shared = [counts[number].item() if number < len(counts) else 0 for number in both]
        if len(ids) > limit and max(shared, default=0) > 1:
            assert min(shared) >= 1


def test_both_views_draw_the_same_proposals_where_draws_apart_would_share_few():
    torch.manual_seed(0)
    ids = torch.arange(1000).repeat(2).tolist()
    (_, _, query), (_, _, key) = sample(ids, ids[::-1], 100)
    assert len(proposals(query)) == 100
    assert proposals(query) == proposals(key)
    (_, _, again), _ = sample(ids, ids[::-1], 100)
    assert proposals(again) != proposals(query)


@pytest.mark.parametrize("limit", [8, 1000])
def test_of_very_many_boxes_enough_are_looked_at(limit, monkeypatch):
    monkeypatch.setattr(sampling, "_CANDIDATES", 20_000)
    monkeypatch.setattr(sampling, "_SPARE", 1_000)
    generator = torch.Generator().manual_seed(0)
    positives = torch.randint(0, 500, (60_000,), generator=generator)
    ids = torch.cat([torch.full((90_000,), BACKGROUND), positives]).tolist()
    for (_, _, query), (_, rows, key) in (sample(ids, ids[::-1], limit) for _ in range(10)):
        assert proposals(query) == proposals(key)
        assert len(proposals(query)) == min(500, limit * 3 // 4)
        assert (query == BACKGROUND).sum() == (key == BACKGROUND).sum() == limit // 4
        assert len(set(rows.tolist())) == limit
    few = torch.cat([torch.full((150_000,), BACKGROUND), torch.arange(300)]).tolist()
    (_, _, query), _ = sample(few, few, 1000)
    assert proposals(query) == set(range(300))


def test_of_very_many_positives_background_still_has_its_share(monkeypatch):
    monkeypatch.setattr(sampling, "_CANDIDATES", 200)
    monkeypatch.setattr(sampling, "_SPARE", 60)
    ids = [*range(10_000), *[BACKGROUND] * 60]
    for _, rows, kept in sample(ids, ids, 20, share=0.5):
        assert (kept == BACKGROUND).sum() == 10
        assert len(set(rows.tolist())) == 20


def test_where_more_boxes_are_wanted_than_are_looked_at_by_default_all_of_them_are_found(monkeypatch):
    monkeypatch.setattr(sampling, "_CANDIDATES", 200)
    monkeypatch.setattr(sampling, "_SPARE", 60)
    ids = [*range(100), *[BACKGROUND] * 10_000]
    for _, rows, _ in sample(ids, ids, 1000):
        assert len(set(rows.tolist())) == 1000


def test_no_proposal_is_always_or_never_drawn():
    torch.manual_seed(0)
    ids = list(range(20))
    drawn = [proposals(sample(ids, ids, 10)[0][2]) for _ in range(60)]
    counts = [sum(number in each for each in drawn) for number in ids]
    assert all(0 < count < 60 for count in counts)


def test_which_box_of_a_proposal_is_drawn_is_left_to_chance():
    ids = torch.arange(20).repeat(50).tolist()
    drawn = {row for _ in range(20) for row in sample(ids, ids, 20)[0][1].tolist()}
    assert len(drawn) > 200
