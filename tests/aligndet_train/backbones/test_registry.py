"""The backbone of a detector that ships here can be trained by the image-domain stage: one map, nothing frozen."""

from pathlib import Path

import pytest
import torch

import aligndet_train.configs
from aligndet_train.backbones.registry import build_backbone, find_backbone, output_channels
from proposals.errors import AlignDetError

FOLDER = Path(next(iter(aligndet_train.configs.__path__)))
# One of each kind of backbone; Lite0 hands out other maps to every detector.
NAMES = ("fcos", "mask_rcnn_r18", "mask_rcnn_mbv2", "mask_rcnn_swin_s")
CONFIGS = [*(FOLDER / f"{name}.py" for name in NAMES), *sorted(FOLDER.glob("*_lite0.py"))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_detectors_backbone_is_found_and_trains(config):
    backbone = build_backbone(find_backbone(str(config)).config)
    backbone.train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    (features,) = backbone(torch.rand(2, 3, 64, 64))
    assert features.shape[:2] == (2, output_channels(backbone))
    features.square().mean().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("swin_t", "swin_tiny"),
        ("swin_b", "swin_base"),
        ("mobilenet_v2", "mobilenet_v2"),
        ("resnet18", "resnet18"),
    ],
)
def test_torchvisions_names_are_mmdets_networks(name, same):
    assert find_backbone(f"torchvision:{name}").config == find_backbone(same).config


def test_a_name_that_torchvision_has_not_is_refused():
    with pytest.raises(AlignDetError, match="no backbone 'torchvision:swin_large'"):
        find_backbone("torchvision:swin_large")


def test_a_detectors_scale_of_the_last_map_stays():
    backbone = build_backbone(find_backbone(str(FOLDER / "fcos_lite0.py")).config)
    assert backbone.feature_scale == (2.5,)
