"""The methods of the image-domain stage: which model a config is of."""

from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from aligndet_train.backbones.registry import (
    BackboneChoice,
    build_backbone,
    output_channels,
    parameters_without_gradient,
)
from aligndet_train.image_domain.config import ImageDomainConfig, MocoConfig, SimClrConfig, SimSiamConfig
from aligndet_train.image_domain.moco import Moco
from aligndet_train.image_domain.model import ImageDomainModel, TwoCropPreprocessor
from aligndet_train.image_domain.simclr import SimClr
from aligndet_train.image_domain.simsiam import SimSiam
from aligndet_train.memory_order import order_weights

# Each is called with (backbone, channels of its features, preprocessor, config).
_MODELS: dict[type[ImageDomainConfig], Any] = {SimSiamConfig: SimSiam, MocoConfig: Moco, SimClrConfig: SimClr}


def build_model(choice: BackboneChoice, config: ImageDomainConfig) -> ImageDomainModel:
    """The model of ``config``'s method with fresh weights, in NHWC order; seeds torch with ``config.seed`` first."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(choice.config)
    preprocessor = TwoCropPreprocessor(choice.inputs, config.views, config.seed)
    channels = output_channels(backbone, config.views.size)
    _freeze_what_learns_nothing(backbone, config.views.size)
    model: ImageDomainModel = _MODELS[type(config)](backbone, channels, preprocessor, config)
    # What convolutions are written for, on CPUs and on tensor cores: benchmarks/image_domain_step.py has the ratio.
    order_weights(model)
    return model


def _freeze_what_learns_nothing(backbone: nn.Module, side: int) -> None:
    """DistributedDataParallel waits for every gradient; and who uses the weights should know which are random."""
    idle = parameters_without_gradient(backbone, side)
    for name in idle:
        backbone.get_parameter(name).requires_grad_(False)
    if idle:
        print_log(
            f"{len(idle)} parameters of the backbone have no part in its features and stay as they are, {idle[0]} first"
        )
