"""Weights of other projects inside a detector: all or nothing, with the normalisation and style that go with them."""

import pytest
import timm
import torch
import torchvision
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from typer.testing import CliRunner

from aligndet_train.backbones.convert import convert
from aligndet_train.backbones.inspect import architecture, fitting_backbones
from aligndet_train.backbones.plug import fit, plugged
from aligndet_train.backbones.registry import MMDET_BACKBONES, build_backbone
from aligndet_train.box_domain import build_pretrainer
from aligndet_train.config import load_run_config, read_config, shipped_config
from proposals.cli import build_app
from proposals.errors import AlignDetError
from tests.aligndet_train.backbones import layouts
from tests.aligndet_train.backbones.layouts import tensors
from tests.aligndet_train.conftest import TINY


@pytest.fixture
def moco(tmp_path):
    """A MoCo v2 file of the tiny FCOS's width, but 50 layers deep."""
    torch.save({"state_dict": tensors(layouts.moco_v2())}, tmp_path / "moco.pth.tar")
    return tmp_path / "moco.pth.tar"


def test_a_moco_file_becomes_the_frozen_backbone_with_imagenets_normalisation(moco):
    fifty = {
        "model.backbone.depth": 50,
        "model.backbone.style": "caffe",
        "model.neck.in_channels": [32, 64, 128, 256],
    }
    options, converted, fitted = plugged(moco, read_config(TINY["fcos"], fifty))
    assert fitted.complete
    assert options["model.backbone.style"] == "pytorch"
    assert options["model.data_preprocessor.bgr_to_rgb"] is True
    run = load_run_config(TINY["fcos"], {}, options | fifty | {"model.backbone.style": "pytorch"})
    assert run.stock_model["data_preprocessor"]["std"] == [58.395, 57.12, 57.375]
    model = build_pretrainer(run.stock_model, run.pretrain)
    inside = model.student.backbone.state_dict()
    assert inside.keys() == converted.state.keys()
    assert all(torch.equal(value, converted.state[name]) for name, value in inside.items())
    assert not any(p.requires_grad for p in model.student.backbone.parameters())


def test_weights_that_do_not_fill_the_backbone_are_refused_with_the_first_that_fails(moco):
    with pytest.raises(
        AlignDetError, match=r"MoCo v1/v2, ResNet\) does not fill the detector's ResNet: .* inspect"
    ):
        plugged(moco, read_config(TINY["fcos"], {}))


def test_timm_backbones_are_plugged_by_name(tmp_path):
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    torch.save(state, tmp_path / "lite0.pth")
    options, _, fitted = plugged(tmp_path / "lite0.pth", read_config(shipped_config("fcos_lite0"), {}))
    assert options == {"model.backbone.weights": str(tmp_path / "lite0.pth")}
    assert fitted.complete


def test_architectures_are_read_from_the_shapes(tmp_path):
    for name, shapes, wanted in (
        ("resnet", layouts.resnet50(), "ResNet-50, stem width 8"),
        ("swin", layouts.simmim(), "Swin, width 8, depths [1, 1, 2, 1], 1 heads in stage 1, window 6"),
        ("vit", layouts.dinov2(registers=4), "ViT, width 16, depth 2, patch 14, 4 registers"),
    ):
        torch.save(tensors(shapes), tmp_path / f"{name}.pth")
        assert architecture(convert(tmp_path / f"{name}.pth")) == wanted


def expanded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As many zeros as ``state`` has numbers, in a file of a few kilobytes."""
    return {name: torch.zeros(()).expand(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(
    ("name", "into"),
    [("resnet101", "resnet101"), ("resnet34", "resnet34"), ("swin_s", "swin_small"), ("swin_t", "swin_tiny")],
)
def test_a_deeper_networks_file_fits_none_that_is_shallower(name, into, tmp_path):
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    torch.save(expanded(state), tmp_path / "w.pth")
    assert fitting_backbones(convert(tmp_path / "w.pth")) == [into]


def test_a_network_with_more_inside_its_blocks_fits_none_that_has_less(tmp_path):
    with torch.device("meta"):
        squeezed, plain = (
            timm.create_model("seresnet50").state_dict(),
            timm.create_model("resnet50").state_dict(),
        )
        efficient = timm.create_model("tf_efficientnet_b0").state_dict()
    torch.save(expanded(squeezed), tmp_path / "se.pth")
    torch.save(expanded(plain), tmp_path / "plain.pth")
    torch.save(expanded(efficient), tmp_path / "b0.pth")
    assert fitting_backbones(convert(tmp_path / "se.pth")) == []
    assert fitting_backbones(convert(tmp_path / "plain.pth")) == ["resnet50"]
    with pytest.raises(AlignDetError, match=r"_se_conv_reduce_weight has no place in its blocks"):
        plugged(tmp_path / "b0.pth", read_config(shipped_config("fcos_lite0"), {}))


def test_the_refusal_of_a_deeper_network_names_a_block_too_many(tmp_path):
    torch.save(tensors(layouts.resnet50()), tmp_path / "w.pth")
    shallow = {"type": "ResNet", "depth": 50, "stem_channels": 8, "base_channels": 8, "num_stages": 3}
    fewer = shallow | {"out_indices": (0, 1, 2), "strides": (1, 2, 2), "dilations": (1, 1, 1)}
    assert fit(convert(tmp_path / "w.pth"), fewer).complete, "a whole stage may be left out"
    state = tensors(layouts.resnet50() | {"layer3.6.conv1.weight": (32, 128, 1, 1)})
    torch.save(state, tmp_path / "w.pth")
    fifty = {"model.backbone.depth": 50, "model.neck.in_channels": [32, 64, 128, 256]}
    with pytest.raises(AlignDetError, match=r"layer3\.6\.conv1\.weight has no place in its blocks"):
        plugged(tmp_path / "w.pth", read_config(TINY["fcos"], fifty))


@pytest.mark.parametrize(
    ("file", "model", "fits"),
    [
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224", True),
        ("vit_medium_patch16_gap_240", "vit_tiny_patch16_224", False),
        ("swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224", True),
        ("swin_small_patch4_window7_224", "swin_tiny_patch4_window7_224", False),
        ("convnext_small", "convnext_tiny", False),
    ],
)
def test_timms_layers_beyond_the_last_map_may_be_left_and_blocks_in_a_row_may_not(
    file, model, fits, tmp_path
):
    with torch.device("meta"):
        state = timm.create_model(file).state_dict()
    torch.save(expanded(state), tmp_path / "w.pth")
    backbone = {"type": "TimmBackbone", "model_name": model, "out_indices": (0, 1)}
    assert fit(convert(tmp_path / "w.pth"), backbone).complete == fits


def test_a_swins_other_window_fits_mmdets_which_resamples_and_not_timms_which_does_not(tmp_path):
    with torch.device("meta"):
        state = timm.create_model("swin_base_patch4_window12_384").state_dict()
    torch.save(expanded(state), tmp_path / "w.pth")
    converted = convert(tmp_path / "w.pth")
    timms = {"type": "TimmBackbone", "model_name": "swin_base_patch4_window7_224", "out_indices": (0, 3)}
    assert fit(converted, MMDET_BACKBONES["swin_base"]).complete
    assert not fit(converted, timms).complete
    assert fit(converted, timms | {"model_name": "swin_base_patch4_window12_384"}).complete


def test_a_timm_model_of_one_image_size_is_refused_and_one_of_any_is_not(tmp_path):
    for name, taken in (("beit_base_patch16_224", False), ("test_vit", True)):
        with torch.device("meta"):
            state = timm.create_model(name).state_dict()
        torch.save(expanded(state), tmp_path / "w.pth")
        config = Config(
            {"model": {"backbone": {"type": "TimmBackbone", "model_name": name, "out_indices": (1,)}}}
        )
        if taken:
            assert plugged(tmp_path / "w.pth", config)[2].complete
            continue
        with pytest.raises(AlignDetError, match="beit_base_patch16_224 takes no images of 256 x 320"):
            plugged(tmp_path / "w.pth", config)


def test_inspect_prints_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "run[v2]").mkdir()
    path = tmp_path / "run[v2]" / "w.pth"
    state = {"weird[/red]key": torch.zeros(1), "\x1b[2Jkey": torch.zeros(1)}
    torch.save({"model": state, "[bold]beside": 1}, path)
    result = CliRunner().invoke(build_app(), ["backbone", "inspect", str(path)])
    assert result.exit_code == 0, result.exception
    for words in (str(path), "weird[/red]key", r"\x1b[2Jkey", "[bold]beside"):
        assert words in result.output.replace("\n", "")
    assert "\x1b" not in result.output


def test_inspect_names_the_file_its_keys_and_what_it_fits(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    one = torch.zeros(())
    state = {
        name: one.expand(shape)
        for name, shape in layouts.moco_v2(width=64).items()
        if "encoder_k" not in name
    }
    state = {name: value for name, value in state.items() if "queue" not in name or value.numel() < 10**6}
    torch.save({"state_dict": state, "epoch": 200}, tmp_path / "moco.pth")
    assert fitting_backbones(convert(tmp_path / "moco.pth")) == ["resnet50"]
    result = CliRunner().invoke(build_app(), ["backbone", "inspect", str(tmp_path / "moco.pth")])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for words in (
        "MoCo v1/v2; ResNet-50",
        "left: queue of keys",
        "fits these backbones: resnet50",
        "faster_rcnn",
        "use: aligndet pretrain --detector NAME",
    ):
        assert words in text
    assert "fcos_lite0" not in text


def test_what_fits_no_shipped_detector_is_used_with_a_config(tmp_path):
    torch.save(
        {name: torch.zeros(shape) for name, shape in layouts.moco_v2(width=8).items()}, tmp_path / "w.pth"
    )
    result = CliRunner().invoke(build_app(), ["backbone", "inspect", str(tmp_path / "w.pth")])
    assert "none that ship with us" in result.output
    assert "use: aligndet pretrain --config YOURS.py" in result.output


# Of every way in which mmdet's classes load: mmengine's, Swin's own, those that take a whole file.
_PYRAMID = {"embed_dims": 8, "num_layers": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}
_SMALL_SWIN = {
    "embed_dims": 8,
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 4, 8),
    "window_size": 6,
    "convert_weights": True,
}
LOADERS = {
    "ResNet": {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 4},
    "ResNet with weights of its own": {
        "type": "ResNet",
        "depth": 18,
        "base_channels": 4,
        "stem_channels": 4,
        "pretrained": "torchvision://resnet18",
    },
    "Swin": {"type": "SwinTransformer", **_SMALL_SWIN},
    "Swin with its scope": {"type": "mmdet.SwinTransformer", **_SMALL_SWIN},
    "PVT": {"type": "PyramidVisionTransformer", **_PYRAMID},
    "PVT v2": {"type": "PyramidVisionTransformerV2", **_PYRAMID},
    "DetectoRS": {
        "type": "DetectoRS_ResNet",
        "depth": 50,
        "base_channels": 4,
        "stem_channels": 4,
        "conv_cfg": {"type": "ConvAWS"},
    },
}
PREPROCESSOR = {"type": "DetDataPreprocessor", "mean": [0, 0, 0], "std": [1, 1, 1], "bgr_to_rgb": True}


def detector(backbone: dict) -> Config:
    return Config({"model": {"type": "FCOS", "data_preprocessor": PREPROCESSOR, "backbone": backbone}})


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_plugged_is_what_the_class_then_has(name, tmp_path):
    backbone = LOADERS[name]
    plain = {key: value for key, value in backbone.items() if key not in ("convert_weights", "pretrained")}
    path = tmp_path / "weights.pth"
    # What a layer computes from its weights is in no file of another project.
    written = {
        key: value
        for key, value in build_backbone(plain).state_dict().items()
        if not key.endswith(("_gamma", "_beta"))
    }
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in written.items()}, "meta": {}}, path)
    config = detector(backbone)
    options, _, fitted = plugged(path, config)
    assert len(fitted.loaded) > 60
    config.merge_from_dict(options)
    has = build_backbone(config.model.backbone.to_dict()).state_dict()
    assert all(torch.equal(has[key], value) for key, value in written.items())


@MODELS.register_module()
class DeafResNet(ResNet):
    """Loads nothing, and does not say so."""

    def init_weights(self) -> None: ...


def test_a_class_that_does_not_load_what_fits_it_is_refused(tmp_path):
    settings = LOADERS["ResNet"]
    state = build_backbone(settings).state_dict()
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    with pytest.raises(
        AlignDetError, match=r"DeafResNet, but that class does not load it: \d+ of \d+ tensors"
    ):
        plugged(tmp_path / "w.pth", detector({**settings, "type": "DeafResNet"}))


def test_a_shipped_swin_detector_starts_from_a_file(tmp_path):
    torch.save({"model": tensors(layouts.simmim())}, tmp_path / "simmim.pth")
    small = {f"model.backbone.{key}": value for key, value in _SMALL_SWIN.items() if key != "convert_weights"}
    small |= {"model.backbone.window_size": 6, "model.neck.in_channels": [8, 16, 32, 64]}
    path = shipped_config("mask_rcnn_swin_s")
    options, converted, _ = plugged(tmp_path / "simmim.pth", read_config(path, small))
    run = load_run_config(path, {}, small | options)
    backbone = build_pretrainer(run.stock_model, run.pretrain).student.backbone.state_dict()
    given = converted.for_backbone("SwinTransformer")
    weights = [key for key in given if key.endswith("qkv.weight")]
    assert len(weights) == 5
    assert all(torch.equal(backbone[key], given[key]) for key in weights)
