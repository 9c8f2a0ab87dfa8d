"""The backbone of a detector that ships here can be trained by the image-domain stage: one map, nothing frozen."""

from pathlib import Path

import mmdet
import pytest
import torch

import aligndet_train.configs
from aligndet_train.backbones.registry import build_backbone, find_backbone, output_channels, without_input
from aligndet_train.image_domain.config import image_domain_config
from aligndet_train.image_domain.methods import build_model
from proposals.errors import AlignDetError

OF_MMDET = Path(mmdet.__file__).parent / ".mim" / "configs"
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


# Of every family whose backbone is built in a way of its own: several maps that end together, no **kwargs.
MMDETS = (
    "hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py",
    "ssd/ssd300_coco.py",
    "pvt/retinanet_pvt-t_fpn_1x_coco.py",
)


@pytest.mark.parametrize("config", MMDETS)
def test_every_layer_of_a_mmdet_backbone_learns(config):
    settings = image_domain_config(
        {"views.size": 64, "projection_dims": 8, "hidden_dims": 8, "predictor_dims": 4}
    )
    model = build_model(find_backbone(str(OF_MMDET / config)), settings)
    views = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model((views[0], views[1]))["loss_simsiam"].backward()
    assert [name for name, value in model.backbone.named_parameters() if value.grad is None] == []


def test_a_preprocessor_beside_the_model_counts_and_none_is_refused(tmp_path):
    text = "model = dict(type='FCOS', backbone=dict(type='mmdet.ResNet', depth=18))\n"
    beside = "data_preprocessor = dict(type='DetDataPreprocessor', mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)\n"
    (tmp_path / "beside.py").write_text(text + beside)
    found = find_backbone(str(tmp_path / "beside.py"))
    assert (found.inputs.mean, found.inputs.bgr_to_rgb) == ((1, 2, 3), True)
    assert found.config["type"] == "ResNet"
    (tmp_path / "none.py").write_text(text)
    with pytest.raises(AlignDetError, match=r"none\.py has no `data_preprocessor`"):
        find_backbone(str(tmp_path / "none.py"))


def test_a_model_that_fails_on_the_views_size_is_refused_in_words():
    with pytest.raises(AlignDetError, match="takes no image of 96 px"):
        output_channels(build_backbone(find_backbone("timm:levit_128s").config), 96)


def test_an_efficientnet_has_no_frozen_stage():
    config = OF_MMDET / "efficientnet" / "retinanet_effb3_fpn_8xb4-crop896-1x_coco.py"
    backbone = build_backbone(find_backbone(str(config)).config)
    backbone.train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_settings_that_a_backbone_refuses_are_said():
    with pytest.raises(AlignDetError, match=r"mmdet's ResNet cannot be made with .*depth.*19"):
        build_backbone({"type": "ResNet", "depth": 19})


def test_what_the_features_do_not_depend_on_is_frozen_and_said(capsys):
    name = str(OF_MMDET / "yolo" / "yolov3_mobilenetv2_8xb24-320-300e_coco.py")
    model = build_model(find_backbone(name), image_domain_config({"views.size": 64}))
    frozen = [name for name, value in model.backbone.named_parameters() if not value.requires_grad]
    assert "3 parameters of the backbone have no part in its features" in capsys.readouterr().out
    assert len(frozen) == 3
    assert all(name.startswith("conv2.") for name in frozen)
    model.features(torch.rand(2, 3, 64, 64)).sum().backward()
    learns = [value for value in model.backbone.parameters() if value.requires_grad]
    assert all(value.grad is not None for value in learns)
    assert build_model(find_backbone("resnet18"), image_domain_config({"views.size": 64}))


def test_a_backbone_that_hands_out_its_input_does_not_see_colours_as_features():
    images = torch.rand(2, 3, 8, 8)
    (only,) = without_input((images, images + 1), images)
    assert torch.equal(only, images + 1)
    detectors = OF_MMDET / "detectors" / "detectors_cascade-rcnn_r50_1x_coco.py"
    backbone = build_backbone(find_backbone(str(detectors)).config)
    assert output_channels(backbone, 128) == 2048
