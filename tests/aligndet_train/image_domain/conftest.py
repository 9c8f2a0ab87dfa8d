"""A network that a CPU trains in seconds, and the settings that go with it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from aligndet_train.backbones.registry import IMAGENET
from aligndet_train.image_domain.config import MocoConfig, SimSiamConfig, image_domain_config
from aligndet_train.image_domain.moco import Moco
from aligndet_train.image_domain.model import TwoCropPreprocessor
from aligndet_train.image_domain.simsiam import SimSiam

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
