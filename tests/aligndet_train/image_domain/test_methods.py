"""The models as they are built for a run."""

import pytest
import torch

from aligndet_train.backbones.registry import find_backbone
from aligndet_train.image_domain.config import CONFIGS, image_domain_config
from aligndet_train.image_domain.methods import build_model


@pytest.mark.parametrize("method", sorted(CONFIGS))
def test_the_order_in_memory_changes_no_loss_and_no_gradient(method):
    config = image_domain_config({"views.size": 64}, method)
    built, plain = (build_model(find_backbone("resnet18"), config) for _ in range(2))
    plain.to(memory_format=torch.contiguous_format)
    assert built.backbone.layer4[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    views = torch.randn(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    figures = []
    for model in (built, plain):
        loss, _ = model.train().parse_losses(model(tuple(views)))
        loss.backward()
        gradients = [value.grad.norm() for value in model.parameters() if value.grad is not None]
        figures.append(torch.stack([loss, *gradients]))
    torch.testing.assert_close(*figures, rtol=1e-3, atol=1e-5)
