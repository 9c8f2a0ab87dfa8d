"""Weights of other projects inside a detector: all or nothing, with the normalisation and style that go with them."""

import pytest
import torch
from typer.testing import CliRunner

from aligndet_train.backbones.convert import convert
from aligndet_train.backbones.inspect import architecture, fitting_backbones
from aligndet_train.backbones.plug import plugged
from aligndet_train.box_domain import build_pretrainer
from aligndet_train.config import load_run_config, read_config
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
    import timm

    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    torch.save(state, tmp_path / "lite0.pth")
    from aligndet_train.config import shipped_config

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
    ):
        assert words in text
    assert "fcos_lite0" not in text
