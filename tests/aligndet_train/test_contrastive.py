"""The box-domain contrastive loss against the released one's numbers and a literal per-id loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy, normalize

from aligndet_train.losses.contrastive import OtherRanks, box_contrastive_loss, ids_with_a_query

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
BACKGROUND = -1


def literal_loss(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor, tau: float) -> Tensor:
    """The paper's sums written out: one cross-entropy for every (query, positive)."""
    q, k = normalize(query, dim=1), normalize(key.detach(), dim=1)
    per_id = []
    for i in sorted(set(query_ids.tolist()) - {BACKGROUND}):
        queries = [n for n, label in enumerate(query_ids.tolist()) if label == i]
        positives = [k[n] for n, label in enumerate(key_ids.tolist()) if label == i] or [
            q[n] for n in queries
        ]
        negatives = [k[n] for n, label in enumerate(key_ids.tolist()) if label != i]
        negatives += [q[n].detach() for n, label in enumerate(query_ids.tolist()) if label != i]
        pairs = [
            cross_entropy(torch.stack([q[n] @ z for z in (p, *negatives)])[None] / tau, torch.tensor([0]))
            for n in queries
            for p in positives
        ]
        per_id.append(torch.stack(pairs).mean())
    return torch.stack(per_id).mean() if per_id else query.sum() * 0


def value_and_gradient(loss, query: Tensor) -> tuple[float, Tensor]:
    query = query.clone().requires_grad_()
    value = loss(query)
    (gradient,) = torch.autograd.grad(value, query)
    return value.item(), gradient


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden (numbers of the released loss) is not here")
@pytest.mark.parametrize("case", sorted(GOLDEN.glob("contrastive_*.npz")), ids=lambda p: p.stem)
def test_matches_the_released_loss(case):
    data = np.load(case)
    value, gradient = value_and_gradient(
        lambda query: box_contrastive_loss(
            query,
            torch.tensor(data["key"]),
            torch.tensor(data["query_labels"]),
            torch.tensor(data["key_labels"]),
            background=int(data["background_label"]),
            temperature=float(data["temperature"]),
        ),
        torch.tensor(data["query"]),
    )
    assert value == pytest.approx(float(data["loss"]), abs=1e-10)
    assert np.abs(gradient.numpy() - data["grad_query"]).max() < 1e-9


ids = st.lists(st.sampled_from([BACKGROUND, 0, 1, 2, 256, 5000, -7]), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(query_ids=ids, key_ids=ids, seed=st.integers(0, 2**16), tau=st.sampled_from([0.07, 0.5, 1.0]))
@example(query_ids=[-1, 0], key_ids=[*[-1] * 9, 0], seed=0, tau=0.07).via("softplus beyond torch's threshold")
def test_equals_the_literal_loop(query_ids, key_ids, seed, tau):
    torch.manual_seed(seed)
    query, key = torch.randn(len(query_ids), 8).double(), torch.randn(len(key_ids), 8).double()
    labels = torch.tensor(query_ids), torch.tensor(key_ids)
    value, gradient = value_and_gradient(
        lambda q: box_contrastive_loss(q, key, *labels, background=BACKGROUND, temperature=tau), query
    )
    expected, expected_gradient = value_and_gradient(lambda q: literal_loss(q, key, *labels, tau), query)
    assert value == pytest.approx(expected, abs=1e-10)
    assert torch.allclose(gradient, expected_gradient, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(query_ids=ids, key_ids=ids, seed=st.integers(0, 2**16), tau=st.sampled_from([0.07, 0.5]))
def test_groups_are_losses_of_their_own_weighed_by_their_ids(query_ids, key_ids, seed, tau):
    torch.manual_seed(seed)
    query, key = torch.randn(len(query_ids), 8).double(), torch.randn(len(key_ids), 8).double()
    labels = torch.tensor(query_ids), torch.tensor(key_ids)
    # Any id has one group; background is in several.
    groups = tuple(
        torch.where(own == BACKGROUND, torch.arange(len(own)) % 3, own.remainder(3)) for own in labels
    )

    def literal(q: Tensor) -> Tensor:
        parts, counts = [], []
        for group in range(3):
            rows, others = groups[0] == group, groups[1] == group
            counts.append(len(set(labels[0][rows].tolist()) - {BACKGROUND}))
            parts.append(literal_loss(q[rows], key[others], labels[0][rows], labels[1][others], tau))
        return sum(count * part for count, part in zip(counts, parts, strict=True)) / max(1, sum(counts))

    value, gradient = value_and_gradient(
        lambda q: box_contrastive_loss(
            q, key, *labels, background=BACKGROUND, temperature=tau, groups=groups
        ),
        query,
    )
    expected, expected_gradient = value_and_gradient(literal, query)
    assert value == pytest.approx(expected, abs=1e-10)
    assert torch.allclose(gradient, expected_gradient, atol=1e-9)


def test_momentum_view_gets_no_gradient():
    key = torch.randn(6, 4, requires_grad=True)
    labels = torch.arange(6)
    box_contrastive_loss(
        torch.randn(6, 4, requires_grad=True), key, labels, labels, background=-1, temperature=0.5
    ).backward()
    assert key.grad is None


@pytest.mark.parametrize("n_keys", [0, 5])
def test_only_background_is_a_zero_with_a_gradient(n_keys):
    query = torch.randn(4, 3, requires_grad=True)
    everywhere = torch.full((4,), 9)
    loss = box_contrastive_loss(
        query, torch.randn(n_keys, 3), everywhere, torch.zeros(n_keys), background=9, temperature=0.5
    )
    loss.backward()
    assert loss.item() == 0
    assert query.grad is not None
    assert query.grad.abs().max() == 0


def test_half_precision_inputs_under_autocast_are_computed_in_float32():
    torch.manual_seed(0)
    query, key = torch.randn(32, 16), torch.randn(32, 16)
    labels = torch.randint(0, 8, (32,))
    full = box_contrastive_loss(
        query.bfloat16().float(), key.bfloat16().float(), labels, labels, background=-1, temperature=0.5
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = box_contrastive_loss(
            query.bfloat16(), key.bfloat16(), labels, labels, background=-1, temperature=0.5
        )
    assert half.dtype == torch.float32
    assert torch.equal(full, half)


def test_embeddings_next_to_nothing_have_the_gradient_of_torchs_normalize():
    torch.manual_seed(0)
    lengths = torch.tensor([[0], [1e-14], [1e-12], [1e-9], [1], [1e9]])
    query, key = normalize(torch.randn(6, 8).double(), dim=1) * lengths, torch.randn(6, 8).double()
    labels = torch.tensor([0, 0, 1, 1, 2, BACKGROUND]), torch.tensor([0, 2, BACKGROUND, 5, 5, 5])
    _, gradient = value_and_gradient(
        lambda q: box_contrastive_loss(q, key, *labels, background=BACKGROUND, temperature=0.5), query
    )
    _, expected = value_and_gradient(lambda q: literal_loss(q, key, *labels, 0.5), query)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=0)


def embeddings_and_ids(seed: int, boxes: tuple[int, int], labels: int) -> list[Tensor]:
    """Of two views; most ids of -1 (background), 0, .., labels - 1 are missing in the smaller ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn((n, 16), generator=generator) for n in boxes]
    return rows + [torch.randint(-1, labels, (n,), generator=generator) for n in boxes]


def assert_compiled_is_eager(query: Tensor, *views: Tensor, others: OtherRanks | None = None) -> None:
    eager, compiled = (
        value_and_gradient(
            lambda q, c=compiled: (
                3
                * box_contrastive_loss(
                    q, *views, background=BACKGROUND, temperature=0.5, others=others, compiled=c
                )
            ),
            query,
        )
        for compiled in (False, True)
    )
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    assert compiled[1].dtype == query.dtype
    # In bfloat16 a different last bit of the float32 that it was rounded from may show as 2^-8.
    rtol = 1e-4 if query.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(compiled[1], eager[1], rtol=rtol, atol=1e-7)


@pytest.mark.slow
def test_compiled_is_eager_in_two_forms_whatever_the_sizes():
    """torch.compile gives up at the ninth form."""
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    sizes = [
        (40, 40),
        (40, 40),
        (25, 31),
        (31, 25),
        (31, 31),
        (2, 90),
        (90, 2),
        (1, 9),
        (9, 1),
        (0, 9),
        (9, 0),
    ]
    for seed, boxes in enumerate(sizes):
        assert_compiled_is_eager(*embeddings_and_ids(seed, boxes, labels=12))
    only_background = embeddings_and_ids(0, (40, 40), labels=0)
    assert_compiled_is_eager(*only_background)
    *rows, query_ids, _ = embeddings_and_ids(0, (40, 40), labels=12)
    assert_compiled_is_eager(*rows, query_ids, torch.full((40,), 99))
    assert counters["stats"]["unique_graphs"] - before == 2


@pytest.mark.slow
def test_compiled_is_eager_with_the_boxes_of_other_ranks():
    foreign = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    others = OtherRanks(foreign, torch.arange(50) < 44, torch.tensor(6.5, dtype=torch.float64))
    assert_compiled_is_eager(*embeddings_and_ids(0, (40, 30), labels=12), others=others)


@pytest.mark.slow
def test_compiled_is_float32_under_autocast():
    query, key, *ids = embeddings_and_ids(0, (40, 30), labels=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_compiled_is_eager(query.bfloat16(), key.bfloat16(), *ids)


@given(ranks=st.integers(2, 4), seed=st.integers(0, 2**16))
def test_the_mean_over_ranks_that_share_negatives_is_the_loss_of_the_whole_batch(ranks, seed):
    generator = torch.Generator().manual_seed(seed)
    views, ids = [], []
    for rank in range(ranks):
        sizes = torch.randint(0, 12, (2,), generator=generator).tolist()
        views.append([torch.randn((n, 8), generator=generator, dtype=torch.float64) for n in sizes])
        # An id belongs to one rank; background is everyone's.
        drawn = [torch.randint(-1, 4, (n,), generator=generator) for n in sizes]
        ids.append([torch.where(d < 0, -1, d + 10 * rank) for d in drawn])
    leaves = [query.requires_grad_() for query, _ in views]
    whole = box_contrastive_loss(
        *(torch.cat([v[i] for v in views]) for i in (0, 1)),
        *(torch.cat([d[i] for d in ids]) for i in (0, 1)),
        background=-1,
        temperature=0.5,
    )
    mean_ids = sum(ids_with_a_query(query, -1) for query, _ in ids).clamp(min=1) / ranks
    each = []
    for rank in range(ranks):
        foreign = torch.cat([torch.cat(v) for r, v in enumerate(views) if r != rank] + [torch.ones(3, 8)])
        real = torch.arange(len(foreign)) < len(foreign) - 3
        others = OtherRanks(foreign.detach(), real, mean_ids)
        each.append(
            box_contrastive_loss(*views[rank], *ids[rank], background=-1, temperature=0.5, others=others)
        )
    assert (sum(each) / ranks).item() == pytest.approx(whole.item(), abs=1e-10)
    expected, found = (torch.autograd.grad(loss, leaves) for loss in (whole, sum(each) / ranks))
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
