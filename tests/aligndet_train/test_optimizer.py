"""Clipping is mmengine's, but nothing waits for the norm."""

import copy
import dataclasses

import pytest
import torch
from mmengine.optim import OptimWrapper

from aligndet_train.config import load_run_config
from aligndet_train.optimizer import build_optimizer, wrapped_optimizer
from proposals.errors import AlignDetError
from tests.aligndet_train.conftest import TINY
from tests.aligndet_train.fake_gpu import no_waits_on_a_fake_gpu


def stepped(model, wrapper_of):
    wrapper = wrapper_of(torch.optim.SGD(model.parameters(), lr=0.1))
    wrapper.update_params(model(torch.arange(12.0).view(3, 4)).square().sum())
    return wrapper


@pytest.mark.parametrize("amp", [False, True])
def test_gradients_are_clipped_as_mmengine_clips_them(amp):
    torch.manual_seed(0)
    ours = torch.nn.Linear(4, 2)
    theirs = copy.deepcopy(ours)
    wrapper = stepped(ours, lambda optimizer: wrapped_optimizer(optimizer, amp=amp, clip_grad=0.5))
    stock = stepped(theirs, lambda optimizer: OptimWrapper(optimizer, clip_grad={"max_norm": 0.5}))
    assert torch.equal(ours.weight, theirs.weight)
    assert wrapper.norm.item() == stock.message_hub.get_scalar("train/grad_norm").current() > 0.5


def test_clipping_does_not_wait_for_the_gpu():
    with no_waits_on_a_fake_gpu():
        weight = torch.nn.Parameter(torch.zeros(4, device="cuda"))
        wrapper = wrapped_optimizer(torch.optim.SGD([weight], lr=0.1), amp=False, clip_grad=0.5)
        weight.grad = torch.zeros(4, device="cuda")
        wrapper.step()
        assert wrapper.norm.device.type == "cuda"


@pytest.mark.parametrize(("batch_size", "ranks"), [(4, 1), (4, 3), (8, 2)])
def test_the_rate_grows_with_the_images_of_all_ranks_and_what_is_frozen_is_left_out(batch_size, ranks):
    config = load_run_config(TINY["fcos"], {"batch_size": batch_size}, {}).pretrain
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 2).requires_grad_(False))
    (group,) = build_optimizer(model, config, ranks).param_groups
    wanted = config.optimizer["lr"] * batch_size * ranks / config.base_batch_size
    assert group["lr"] == group["initial_lr"] == pytest.approx(wanted)
    assert [id(p) for p in group["params"]] == [id(p) for p in model[0].parameters()]


@pytest.mark.parametrize(
    ("optimizer", "complaint"),
    [
        ({"type": "Sgd", "lr": 1.0}, "Sgd is not in"),
        ({"type": "AdamW", "lr": 1.0, "momentum": 0.9}, "momentum"),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_named(optimizer, complaint):
    config = dataclasses.replace(load_run_config(TINY["fcos"], {}, {}).pretrain, optimizer=optimizer)
    with pytest.raises(
        AlignDetError, match=rf"pretrain.optimizer .* cannot be made: .*{complaint}.*_delete_"
    ):
        build_optimizer(torch.nn.Linear(4, 2), config, 1)


def test_an_optimizer_of_another_type_may_drop_what_the_config_set():
    adamw = {"_delete_": True, "type": "AdamW", "lr": 1.0}
    config = load_run_config(TINY["fcos"], {}, {"pretrain.optimizer": adamw}).pretrain
    assert build_optimizer(torch.nn.Linear(4, 2), config, 1).param_groups[0]["weight_decay"] == 0.01
