import pytest
import torch
from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

GAMMA, ALPHA = 2.0, 0.25


def sigmoid_by_definition(logits, target, weight, gamma):
    chance = logits.sigmoid()
    hit = torch.nn.functional.one_hot(target, logits.shape[1] + 1)[:, :-1].bool()
    right = torch.where(hit, chance, 1 - chance)
    loss = -torch.where(hit, ALPHA, 1 - ALPHA) * (1 - right) ** gamma * right.log()
    return loss * torch.cat([weight, weight.new_ones(1)])[target][:, None]


def softmax_by_definition(logits, target, weight, gamma):
    right = logits.softmax(1)[range(len(target)), target.clamp(min=0)]
    loss = -ALPHA * (1 - right) ** gamma * right.log() * weight[target.clamp(min=0)]
    return torch.where(target >= 0, loss, 0.0)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(random, device, same_gradients, gamma, weighted):
    target = torch.tensor([0, 2, 4, 3, 1, 4], device=device)
    weight = random(4, low=0.5, high=2) if weighted else torch.ones(4, dtype=torch.float64, device=device)
    same_gradients(
        lambda x: sigmoid_focal_loss(x, target, gamma, ALPHA, weight if weighted else None, "sum"),
        lambda x: sigmoid_by_definition(x, target, weight, gamma).sum(),
        random(6, 4, low=-6, high=6),
    )


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(random, device, same_gradients, gamma, weighted):
    target = torch.tensor([0, 2, -1, 3, 1], device=device)
    weight = random(4, low=0.5, high=2) if weighted else torch.ones(4, dtype=torch.float64, device=device)
    same_gradients(
        lambda x: softmax_focal_loss(x, target, gamma, ALPHA, weight if weighted else None, "mean"),
        lambda x: softmax_by_definition(x, target, weight, gamma).mean(),
        random(5, 4, low=-4, high=4),
    )


def test_unreduced_and_gradcheck(random, device):
    logits, target = random(3, 4).requires_grad_(), torch.tensor([0, 4, 2], device=device)
    assert sigmoid_focal_loss(logits, target, GAMMA, ALPHA, None, "none").shape == (3, 4)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, target, GAMMA, ALPHA), (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_extreme_logits_stay_finite(device, dtype):
    logits = torch.tensor([[-100.0, 100.0], [100.0, -100.0]], dtype=dtype, device=device).requires_grad_()
    target = torch.tensor([0, 2], device=device)
    loss = sigmoid_focal_loss(logits, target, GAMMA, ALPHA, None, "sum")
    loss.backward()
    assert loss.dtype == dtype
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert float(loss.detach()) == pytest.approx(0.25 * 100 + 0.75 * 100 + 0.75 * 100, rel=0.01)
