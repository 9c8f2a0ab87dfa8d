"""The queue, the key encoder, and that the whole learns to find a picture's other view."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from aligndet_train.image_domain.config import image_domain_config
from aligndet_train.image_domain.moco import Moco
from aligndet_train.image_domain.training import build_optimizer, synchronised
from proposals.errors import AlignDetError
from tests.aligndet_train.image_domain.conftest import share_found, small_moco, trained

STEPS = 120


def views(seed: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.rand(2, count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    return first, second


def trained_step(model: Moco, optimizer: torch.optim.Optimizer, step: int, *, pictures: int = 6) -> None:
    optimizer.zero_grad()
    model(views(step, pictures))["loss_moco"].backward()
    optimizer.step()
    model.after_step(step)


def test_keys_replace_the_oldest_rows_of_the_queue_around_its_end():
    model, _ = small_moco(queue_size=10)
    given = [model._keys(views(step)[1]) for step in (0, 1)]
    model(views(0))
    assert torch.equal(model.queue, torch.cat([given[0], torch.zeros(4, 16)]))
    model(views(1))
    assert torch.equal(model.queue, torch.cat([given[1][4:], given[0][2:], given[1][:4]]))
    assert torch.allclose(model.queue.norm(dim=1), torch.ones(10))
    assert model.seen.item() == 12


def test_a_batch_longer_than_the_queue_fills_it():
    model, _ = small_moco(queue_size=4)
    keys = model._keys(views(0)[1])
    model(views(0))
    assert torch.equal(model.queue, keys[:4])


def test_the_loss_compares_with_the_keys_of_the_steps_before():
    model, config = small_moco()
    assert model(views(0))["loss_moco"].item() == 0
    first, second = views(1)
    past, keys = model._keys(views(0)[1]), model._keys(second)
    figures = model((first, second))
    queries = normalize(model.projector(model.features(first)), dim=1)
    own, others = (queries * keys).sum(dim=1) / config.temperature, queries @ past.T / config.temperature
    expected = (torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1) - own).mean()
    assert figures["loss_moco"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_key_encoder_is_the_average_of_the_query_encoder_statistics_included():
    model, config = small_moco(key_momentum=0.7)
    optimizer = build_optimizer(model, config, 1)
    expected = {name: value.clone() for name, value in key_state(model).items()}
    for step in range(12):
        trained_step(model, optimizer, step)
        for name, value in query_state(model).items():
            momentum = min(0.7, (step + 1) / (step + 2)) if "running" in name else 0.7
            expected[name] = momentum * expected[name] + (1 - momentum) * value
    for name, value in key_state(model).items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
        assert not torch.equal(value, query_state(model)[name]), name


def key_state(model: Moco) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("key_"): value
        for name, value in model.state_dict().items()
        if name.startswith("key_") and value.is_floating_point()
    }


def query_state(model: Moco) -> dict[str, torch.Tensor]:
    return {name: model.state_dict()[name] for name in key_state(model)}


def test_the_optimizer_leaves_the_key_encoder_alone_and_its_statistics_are_never_of_a_batch():
    model, config = small_moco()
    optimized = {id(p) for group in build_optimizer(model, config, 1).param_groups for p in group["params"]}
    keys = [*model.key_backbone.parameters(), *model.key_projector.parameters()]
    assert not optimized & {id(p) for p in keys}
    assert len(optimized) == len(keys)
    before = {name: value.clone() for name, value in key_state(model).items()}
    model.eval()
    model.train()
    model(views(0))["loss_moco"].backward()
    assert all(torch.equal(value, before[name]) for name, value in key_state(model).items())
    assert all(p.grad is None for p in keys)
    norms = [part for part in model.key_backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not any(part.training for part in norms)
    assert norms


@pytest.mark.parametrize("key_momentum", [0.99, 0.999])
def test_it_learns_to_find_the_other_view_of_new_pictures(key_momentum):
    model, config = small_moco(key_momentum=key_momentum)
    before = share_found(model)
    monitor = trained(model, config, STEPS)
    assert before < 0.5
    assert share_found(model) > 0.8
    assert monitor.verdict() is None


def test_a_queue_that_begins_with_random_rows_would_give_all_pictures_one_output():
    model, config = small_moco()
    model.queue.copy_(normalize(torch.randn(model.queue.shape), dim=1))
    model.seen.fill_(len(model.queue))
    trained(model, config, 20)
    assert trained(model, config, 20).verdict() is not None


def test_the_key_encoder_stays_in_evaluation_mode_with_statistics_over_ranks():
    model = synchronised(small_moco()[0])
    model.eval()
    model.train()
    norms = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.SyncBatchNorm)}
    assert {name.split(".")[0] for name in norms} == {"backbone", "key_backbone"}
    assert all(part.training == (not name.startswith("key_")) for name, part in norms.items())


def test_buffers_that_are_no_statistics_of_batches_stay_as_they_are():
    model, config = small_moco()
    model.backbone.register_buffer("limit", torch.tensor(-torch.inf))
    model.key_backbone.register_buffer("limit", torch.tensor(-torch.inf))
    trained(model, config, 1)
    assert model.key_backbone.limit == -torch.inf


def test_its_settings_are_its_own():
    config = image_domain_config({}, "moco_v2")
    assert (config.epochs, config.lr, config.projection_dims, config.queue_size) == (200, 0.03, 128, 65_536)
    with pytest.raises(
        AlignDetError, match=r"predictor_dims: Unexpected keyword argument[^$]*known: .*queue_size"
    ):
        image_domain_config({"predictor_dims": 8}, "moco_v2")
