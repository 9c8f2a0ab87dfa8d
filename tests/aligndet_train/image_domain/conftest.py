"""A network that a CPU trains in seconds, and the settings that go with it."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from aligndet_train.backbones.registry import IMAGENET
from aligndet_train.image_domain.collapse import CollapseMonitor
from aligndet_train.image_domain.config import MocoConfig, SimClrConfig, SimSiamConfig, image_domain_config
from aligndet_train.image_domain.moco import Moco
from aligndet_train.image_domain.model import ImageDomainModel, TwoCropPreprocessor
from aligndet_train.image_domain.simclr import SimClr
from aligndet_train.image_domain.simsiam import SimSiam
from aligndet_train.image_domain.training import build_optimizer

TINY_BACKBONE = Path(__file__).parents[2] / "configs" / "tiny_fcos.py"
TINY = {
    "views.size": 24,
    "max_side": 64,
    "hidden_dims": 32,
    "projection_dims": 32,
    "predictor_dims": 8,
    "batch_size": 48,
    "lr": 8.0,
}
TINY_MOCO = {
    "views.size": 24,
    "max_side": 64,
    "hidden_dims": 32,
    "projection_dims": 16,
    "queue_size": 96,
    "batch_size": 48,
    "lr": 0.5,
}

TINY_SIMCLR = {
    "views.size": 24,
    "max_side": 64,
    "hidden_dims": 32,
    "projection_dims": 16,
    "batch_size": 48,
    "lr": 0.05,
}


class SmallBackbone(nn.Module):
    """Three strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(3, 16), (16, 32), (32, 32)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in layers
            )
        )

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.layers(images),)


def small_simsiam(**changes) -> tuple[SimSiam, SimSiamConfig]:
    config = image_domain_config(TINY | changes)
    torch.manual_seed(config.seed)
    model = SimSiam(SmallBackbone(), 32, TwoCropPreprocessor(IMAGENET, config.views, config.seed), config)
    return model.train(), config


def small_moco(**changes) -> tuple[Moco, MocoConfig]:
    config = image_domain_config(TINY_MOCO | changes, "moco_v2")
    torch.manual_seed(config.seed)
    model = Moco(SmallBackbone(), 32, TwoCropPreprocessor(IMAGENET, config.views, config.seed), config)
    return model.train(), config


def small_simclr(**changes) -> tuple[SimClr, SimClrConfig]:
    config = image_domain_config(TINY_SIMCLR | changes, "simclr")
    torch.manual_seed(config.seed)
    model = SimClr(SmallBackbone(), 32, TwoCropPreprocessor(IMAGENET, config.views, config.seed), config)
    return model.train(), config


def patterns(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Two views of new smooth patterns: another contrast and noise in each."""
    generator = torch.Generator().manual_seed(seed)
    whole = interpolate(torch.randn(count, 3, 3, 3, generator=generator), size=(24, 24), mode="bilinear")
    first, second = (
        whole * (0.5 + torch.rand(count, 1, 1, 1, generator=generator))
        + 0.5 * torch.randn(count, 3, 24, 24, generator=generator)
        for _ in range(2)
    )
    return first, second


@torch.no_grad()
def share_found(model: ImageDomainModel) -> float:
    """Of 400 patterns that were not trained on, those whose nearest other view is their own."""
    first, second = (normalize(model.eval().features(view), dim=1) for view in patterns(10**6, 400))
    model.train()
    return ((first @ second.T).argmax(dim=1) == torch.arange(400)).float().mean().item()


def trained(model: ImageDomainModel, config: MocoConfig | SimClrConfig, steps: int) -> CollapseMonitor:
    """A monitor that has seen a training of ``steps``."""
    optimizer = build_optimizer(model, config, 1)
    monitor = CollapseMonitor(config.projection_dims, config.collapse_ratio, window=steps)
    for step in range(steps):
        loss, figures = model.parse_losses(model(patterns(step, config.batch_size)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step)
        monitor.watch(figures["output_std"])
    return monitor
