"""Every family on its stock config: names, ids, losses and gradients of one pretraining step."""

import copy
import dataclasses

import pytest
import torch
from mmengine.logging import MessageHub

from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.detectors import BACKGROUND
from tests.aligndet_train.detectors_zoo import FAMILIES, SLOW, tiny_run
from tests.aligndet_train.test_contrastive import literal_loss
from tests.aligndet_train.whose_boxes import read_places

NAMES = [*sorted(FAMILIES), *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    """(run, pretraining model) of a family; no test changes the model's weights."""
    run = tiny_run(request.param)
    model = build_pretrainer(run.stock_model, run.pretrain)
    model.train()
    return run, model


@pytest.fixture
def model(family):
    family[1].zero_grad()
    return family[1]


def views_of(model, batch):
    return model.data_preprocessor(batch, True)["views"]


def losses_of(model, views, seed=0):
    torch.manual_seed(seed)
    return model(copy.deepcopy(views), mode="loss")


def assert_all_learn(model, losses):
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    trainable = {name: p for name, p in model.student.named_parameters() if p.requires_grad}
    assert not [name for name, p in trainable.items() if p.grad is None], "DDP would wait for these"
    assert all(torch.isfinite(p.grad).all() for p in trainable.values())


def test_names_and_shapes_are_the_stock_ones(family):
    run, model = family
    stock = build_detector(run.stock_model).state_dict()
    adapter, embedding = model.adapter, model.adapter.embedding_layers
    for name, value in model.student.state_dict().items():
        if not name.startswith(embedding):
            assert adapter.to_stock_shape(name, value, stock[name]).shape == stock[name].shape
    kept = {name for name in model.student.state_dict() if not name.startswith(embedding)}
    replaced = set(stock) - kept
    assert replaced
    assert all(name.startswith(embedding) for name in replaced)


def test_loss_is_the_literal_loop_over_every_stage(family, model, samples):
    sampled, original = [], model._sample
    model._sample = lambda *views: sampled.extend(original(*views)) or sampled[-2:]
    try:
        losses = losses_of(model, views_of(model, samples(0, 3)))
    finally:
        del model._sample
    stages = list(zip(sampled[::2], sampled[1::2], strict=True))
    weights = (family[0].stock_model.get("roi_head") or {}).get("stage_loss_weights", [1])
    assert len(stages) == len(weights)
    expected = 0
    for (query, key), weight in zip(stages, weights, strict=True):
        assert (query.ids != BACKGROUND).any()
        labels = [torch.where(r.ids == BACKGROUND, -1, r.ids) for r in (query, key)]
        stage = literal_loss(
            query.embeddings.double(), key.embeddings.double(), *labels, model.config.temperature
        )
        expected = expected + weight * stage
    assert losses["loss_contrastive"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert_all_learn(model, losses)


def test_every_box_has_the_id_of_the_proposal_it_lies_on(model, samples):
    inputs, targets = views_of(model, samples(0, 3))[0]
    stages = read_places(model, inputs, targets)
    assert len(stages) == len(model.adapter.taps(model.student))
    for places, ids, check in stages:
        assert (ids != BACKGROUND).any()
        assert check(places, ids).all()
        # It is a test only if it sees ids that are not their boxes'.
        assert not fits(check, places, ids.roll(7))


def fits(check, places, ids):
    try:
        return check(places, ids).all()
    except AssertionError:
        return False


def test_what_embeddings_say_decides_neither_ids_nor_box_losses(model, samples, monkeypatch):
    views = views_of(model, samples(0, 3))
    # Some heads keep averages over steps (DDOD): each run starts from the same.
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    for name, parameter in other.student.named_parameters():
        if name.startswith(model.adapter.embedding_layers):
            torch.nn.init.normal_(parameter)
    # TOOD would rank by score after its first epochs.
    monkeypatch.setitem(MessageHub.get_current_instance().runtime_info, "epoch", 1000)
    read = [boxes_and_losses(one, *views[0]) for one in (plain, other)]
    (stages, losses), (other_stages, other_losses) = read
    assert losses == pytest.approx(other_losses, rel=1e-5)
    for one, two in zip(stages, other_stages, strict=True):
        assert not torch.allclose(one.embeddings, two.embeddings)
        assert torch.equal(one.ids, two.ids)


def boxes_and_losses(model, inputs, targets):
    """The student's readings, and the sums of the stock losses that stay."""
    torch.manual_seed(0)
    with torch.no_grad():
        losses = model.student.loss(inputs, model.adapter.targets(copy.deepcopy(targets)))
    kept = {name: float(sum(as_list(v))) for name, v in losses.items() if model.adapter.keeps(name)}
    return model.adapter.read(model.student), kept


def test_a_box_of_fsaf_is_learned_on_one_level_alone(samples):
    run = tiny_run("fsaf")
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    ((places, ids, _),) = read_places(model, *views_of(model, samples(0, 3))[0])
    levels = {number: set(places[ids == number, 1].tolist()) for number in set(ids.tolist()) - {BACKGROUND}}
    assert all(len(found) == 1 for found in levels.values())
    assert len(set.union(*levels.values())) > 1


@pytest.mark.parametrize("first_id", [pytest.param(256, marks=pytest.mark.slow), 5000])
def test_any_id_is_a_proposal(model, samples, first_id, monkeypatch):
    views = views_of(model, samples(0, 1))
    # Of all boxes, as which are drawn of many may hang on their ids.
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, sampled_boxes=None))
    # Some heads keep averages over steps (DDOD): each run starts from the same.
    plain = losses_of(copy.deepcopy(model), views)
    for _, targets in views:
        for target in targets:
            target.gt_instances.labels += first_id
    shifted = losses_of(copy.deepcopy(model), views)
    assert shifted.keys() == plain.keys()
    for name, value in plain.items():
        for one, other in zip(as_list(shifted[name]), as_list(value), strict=True):
            assert one.item() == pytest.approx(other.item(), rel=1e-5), name
    assert shifted["positives"] > 0


def as_list(value):
    return value if isinstance(value, list) else [value]


def test_images_and_views_without_boxes_are_legal(model, samples):
    full = samples(0, 1)
    empty = [dataclasses.replace(sample, boxes=sample.boxes[:0]) for sample in full]
    names = losses_of(model, views_of(model, full)).keys()
    for batch in (empty, [empty[0], full[1]], full[:1], empty[:1]):
        model.zero_grad()
        losses = losses_of(model, views_of(model, batch))
        assert losses.keys() == names, "ranks average figures of the same names"
        assert_all_learn(model, losses)
    for lost in (0, 1):
        views = views_of(model, full)
        for target in views[lost][1]:
            target.gt_instances = target.gt_instances[:0]
        model.zero_grad()
        losses = losses_of(model, views)
        assert losses.keys() == names
        assert_all_learn(model, losses)


def test_untrained_layers_are_frozen_and_all_others_are_as_in_stock(family):
    run, model = family
    untrained = model.adapter.untrained
    stock = {n for n, p in build_detector(run.stock_model).named_parameters() if not p.requires_grad}
    for name, parameter in model.student.named_parameters():
        frozen = name in stock or name.startswith(("backbone.", *untrained))
        assert parameter.requires_grad != frozen, name
