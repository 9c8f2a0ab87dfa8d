"""Figures with a fixed meaning, checked where the answer is known."""

import math

import pytest
import torch

from aligndet_train.diagnostics import contrastive_floor, embedding_diagnostics
from aligndet_train.losses.contrastive import box_contrastive_loss

BACKGROUND = -1


def test_identical_orthogonal_embeddings_are_perfect():
    eye = torch.eye(8)
    figures = embedding_diagnostics(eye, eye, torch.arange(8), torch.arange(8), background=BACKGROUND)
    assert figures["retrieval"] == 1
    assert figures["retrieval_chance"] == pytest.approx(1 / 8)
    assert figures["alignment"] == pytest.approx(0)
    # Orthogonal unit vectors are sqrt(2) apart: log exp(-2 * 2).
    assert figures["uniformity"] == pytest.approx(-4, abs=1e-5)
    assert figures["positives"] == 8


def test_shifted_ids_are_never_retrieved_and_background_does_not_count():
    eye = torch.eye(4)
    ids = torch.tensor([0, 1, 2, BACKGROUND])
    figures = embedding_diagnostics(eye, eye.roll(1, 0), ids, ids, background=BACKGROUND)
    assert figures["retrieval"] == 0
    assert figures["positives"] == 3


def test_a_proposal_missing_in_the_other_view_cannot_be_missed():
    eye = torch.eye(3)
    figures = embedding_diagnostics(
        eye, eye[:2], torch.tensor([0, 1, 2]), torch.tensor([0, 1]), background=BACKGROUND
    )
    assert figures["retrieval"] == 1
    assert figures["with_key"] == pytest.approx(2 / 3)


def test_alignment_is_the_mean_squared_distance_of_the_boxes_of_one_proposal():
    eye = torch.eye(4)
    apart = embedding_diagnostics(
        eye, eye.roll(1, 0), torch.arange(4), torch.arange(4), background=BACKGROUND
    )
    assert apart["alignment"] == pytest.approx(2)
    torch.manual_seed(0)
    query, key = (torch.nn.functional.normalize(torch.randn(50, 8)) for _ in range(2))
    ids, others = torch.randint(-1, 6, (50,)), torch.randint(-1, 6, (50,))
    expected = [
        float((q - k).square().sum())
        for q, i in zip(query, ids, strict=True)
        for k, j in zip(key, others, strict=True)
        if i == j != BACKGROUND
    ]
    figures = embedding_diagnostics(query, key, ids, others, background=BACKGROUND)
    assert figures["alignment"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_uniformity_is_of_rows_from_everywhere():
    """Of images that come one after the other, all must be seen: the last half is one point here, the first is not."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4096, 16))
    rows[2048:] = rows[0]
    ids = torch.arange(4096)
    figures = embedding_diagnostics(rows, rows, ids, ids, background=BACKGROUND)
    alone = embedding_diagnostics(rows[:2048], rows[:2048], ids[:2048], ids[:2048], background=BACKGROUND)
    # A quarter of all pairs are equal, whose exp is 1.
    assert figures["uniformity"] == pytest.approx(math.log(0.25), abs=0.1)
    assert alone["uniformity"] < -3


def test_no_boxes_at_all():
    nothing, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    figures = embedding_diagnostics(nothing, nothing, none, none, background=BACKGROUND)
    assert all(torch.isfinite(value) for value in figures.values())


def test_one_view_may_have_no_box_and_no_query_be_found():
    boxes, nothing, none = torch.eye(2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    alone = embedding_diagnostics(boxes, nothing, torch.arange(2), none, background=BACKGROUND)
    assert {name: float(value) for name, value in alone.items() if value} == {"positives": 2.0}
    apart = embedding_diagnostics(boxes, boxes, torch.arange(2), torch.tensor([2, 3]), background=BACKGROUND)
    assert apart["retrieval"] == apart["retrieval_chance"] == apart["with_key"] == 0


def test_random_embeddings_are_retrieved_as_often_as_chance_says():
    torch.manual_seed(0)
    ids = torch.randint(-1, 5, (4000,))
    query, key = torch.randn(4000, 32), torch.randn(4000, 32)
    figures = embedding_diagnostics(query, key, ids, ids, background=BACKGROUND)
    assert figures["retrieval"] == pytest.approx(float(figures["retrieval_chance"]), abs=0.02)
    assert figures["retrieval_chance"] == pytest.approx(1 / 6, abs=0.02)


@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_the_floor_is_the_loss_of_perfect_orthogonal_embeddings(temperature):
    ids = torch.tensor([0, 0, 1, 2, BACKGROUND, 3])
    embeddings = torch.eye(6)
    embeddings[1] = embeddings[0]
    settings = {"background": BACKGROUND, "temperature": temperature}
    loss = box_contrastive_loss(embeddings, embeddings, ids, ids, **settings)
    assert contrastive_floor(ids, ids, **settings).item() == pytest.approx(loss.item(), abs=1e-6)


def test_the_floor_without_queries_is_zero_and_other_ranks_raise_it():
    settings = {"background": BACKGROUND, "temperature": 0.5}
    none = torch.full((4,), BACKGROUND)
    assert contrastive_floor(none, none, **settings) == 0
    ids = torch.arange(4)
    more = contrastive_floor(ids, ids, more_negatives=torch.tensor(100), **settings)
    assert more.item() == pytest.approx(torch.log1p(106 * torch.tensor(-2.0).exp()).item())


def test_in_groups_the_floor_and_retrieval_count_the_own_group_alone():
    settings = {"background": BACKGROUND, "temperature": 0.5}
    ids, groups = torch.tensor([0, 1, 2, 3]), (torch.tensor([0, 0, 1, 1]),) * 2
    eye = torch.eye(4)
    loss = box_contrastive_loss(eye, eye, ids, ids, groups=groups, **settings)
    assert contrastive_floor(ids, ids, groups=groups, **settings).item() == pytest.approx(
        loss.item(), abs=1e-6
    )
    # Every box looks most like one of the other group, then like its own.
    key = 0.5 * eye + eye[[2, 3, 0, 1]]
    whole = embedding_diagnostics(eye, key, ids, ids, background=BACKGROUND)
    own = embedding_diagnostics(eye, key, ids, ids, background=BACKGROUND, groups=groups)
    assert (whole["retrieval"], own["retrieval"]) == (0, 1)
    assert (whole["retrieval_chance"], own["retrieval_chance"]) == (0.25, 0.5)
