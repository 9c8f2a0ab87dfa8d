"""That it learns to find a picture's other view, and that several ranks learn what one would of all pictures."""

import torch
from torch import distributed

from aligndet_train.image_domain.config import image_domain_config
from aligndet_train.image_domain.simclr import _of_all_ranks
from aligndet_train.image_domain.training import build_optimizer
from aligndet_train.losses.simclr import simclr_loss
from tests.aligndet_train.image_domain.conftest import share_found, small_simclr, trained
from tests.aligndet_train.ranks import said_by_ranks

RANKS, ROWS, WIDTH, OUT, TEMPERATURE = 2, 3, 5, 4, 0.2


def test_it_learns_to_find_the_other_view_of_new_pictures():
    model, config = small_simclr()
    before = share_found(model)
    monitor = trained(model, config, 120)
    assert before < 0.5
    assert share_found(model) > 0.8
    assert monitor.verdict() is None


def test_batch_statistics_are_those_of_both_views():
    model, _ = small_simclr()
    first, second = torch.zeros(4, 3, 24, 24), torch.ones(4, 3, 24, 24)
    model((first, second))
    # The momentum of the running mean is a tenth.
    expected = model.backbone.layers[0][0](torch.cat([first, second])).mean(dim=(0, 2, 3)) / 10
    assert torch.allclose(model.backbone.layers[0][1].running_mean, expected, atol=1e-6)


def test_several_ranks_have_the_gradient_of_one_with_all_pictures(tmp_path):
    views = torch.randn(2, RANKS * ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(WIDTH, OUT, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss, found = simclr_loss(*(views @ weights), TEMPERATURE)
    loss.backward()
    given = [
        (part.clone(), weights.detach(), loss.item(), found.item(), weights.grad)
        for part in views.chunk(RANKS, dim=1)
    ]
    assert said_by_ranks(_compare, given, tmp_path) == [None] * RANKS


def _compare(rank, given):
    views, weights, expected, expected_found, expected_gradient = given
    weights = weights.clone().requires_grad_()
    first, second = views @ weights
    loss, found = simclr_loss(_of_all_ranks(first), _of_all_ranks(second), TEMPERATURE)
    loss.backward()
    # As DistributedDataParallel does.
    distributed.all_reduce(weights.grad)
    torch.testing.assert_close(weights.grad / RANKS, expected_gradient)
    torch.testing.assert_close((loss.item(), found.item()), (expected, expected_found))


def test_its_settings_are_its_own_and_it_is_trained_by_adamw():
    model, config = small_simclr()
    assert isinstance(build_optimizer(model, config, 1), torch.optim.AdamW)
    assert build_optimizer(model, config, 2).param_groups[0]["lr"] == config.lr * 96 / 256
    stock = image_domain_config({}, "simclr")
    assert (stock.optimizer, stock.lr, stock.temperature, stock.epochs) == ("adamw", 1e-3, 0.2, 100)


def test_a_step_that_takes_pictures_twice_is_remarked():
    _, config = small_simclr()
    assert config.remarks(config.batch_size) == []
    (remark,) = config.remarks(20)
    assert "a step of 48 takes some of the 20 images twice" in remark
    assert remark.endswith("--batch-size 10")
