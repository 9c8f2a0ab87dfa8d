"""Weights in NHWC order: what is computed is the same, and checkpoints are as everyone else has them."""

import copy
from pathlib import Path

import torch
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from aligndet_train.box_domain import build_detector
from aligndet_train.memory_order import ChannelsLastHook, order_weights

TINY = Path(__file__).parents[1] / "configs" / "tiny_fcos.py"


def losses(model):
    from mmdet.structures import DetDataSample

    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    sample = DetDataSample(metainfo={"img_shape": (64, 96), "batch_input_shape": (64, 96)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[10.0, 10, 60, 50]]), labels=torch.tensor([0]))
    loss, _ = model.parse_losses(model.loss(image, [sample]))
    loss.backward()
    return torch.stack([loss.detach(), *(p.grad.norm() for p in model.parameters() if p.grad is not None)])


def test_losses_and_gradients_are_those_of_the_other_order():
    init_default_scope("mmdet")
    torch.manual_seed(0)
    plain = build_detector(Config.fromfile(str(TINY)).model).train()
    ordered = copy.deepcopy(plain)
    order_weights(ordered)
    wide = [p for p in ordered.parameters() if p.dim() == 4 and p[0, 0].numel() > 1 and p.shape[1] > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    torch.testing.assert_close(losses(ordered), losses(plain), rtol=1e-3, atol=1e-5)


def test_weight_standardisation_keeps_its_weights_as_they_lay():
    model = nn.Sequential(ConvWS2d(3, 4, 3), ConvAWS2d(4, 4, 3), nn.Conv2d(4, 4, 3)).train()
    order_weights(model)
    assert model(torch.rand(1, 3, 16, 16)).isfinite().all()
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_checkpoint_is_in_the_usual_order():
    model = nn.Conv2d(3, 4, 3)
    order_weights(model)
    checkpoint = {"state_dict": model.state_dict()}
    ChannelsLastHook().before_save_checkpoint(None, checkpoint)
    assert checkpoint["state_dict"]["weight"].is_contiguous()
    assert torch.equal(checkpoint["state_dict"]["weight"], model.weight)
    assert not model.weight.is_contiguous()
