"""What goes with weights into a detector: the settings they were trained with where these are known."""

import json

import pytest
import torch
from mmengine.config import Config

from aligndet_train.backbones.convert import convert
from aligndet_train.backbones.ours import write_backbone
from aligndet_train.backbones.plug import detector_settings, kept_settings, plugged
from aligndet_train.backbones.registry import build_backbone, find_backbone
from aligndet_train.box_domain import build_pretrainer
from aligndet_train.checkpoint import encoded
from aligndet_train.cli_backbone import plugged_options
from aligndet_train.config import load_run_config, read_config
from proposals.errors import AlignDetError
from tests.aligndet_train.backbones import layouts
from tests.aligndet_train.backbones.layouts import tensors
from tests.aligndet_train.conftest import TINY

CAFFE = ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0], False)
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)
FIFTY = {"model.backbone.depth": 50, "model.neck.in_channels": [32, 64, 128, 256]}
CAFFE_FIFTY = FIFTY | {"model.backbone.style": "caffe"}


def settings(model: dict) -> tuple[list[float], list[float], bool]:
    inputs = model["data_preprocessor"]
    return list(inputs["mean"]), list(inputs["std"]), inputs["bgr_to_rgb"]


def outcome(path, config, options=None) -> dict:
    """The detector's config as `pretrain --backbone-weights` makes it."""
    return load_run_config(config, {}, plugged_options(config, options or {}, path)).stock_model


def tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = build_backbone(find_backbone(str(TINY["fcos"])).config).state_dict()
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value for name, value in state.items()
    }


def image_domain(style: str = "pytorch") -> dict:
    """A last.pth of the image-domain stage on the tiny FCOS's backbone, as load_checkpoint returns it."""
    choice = find_backbone(str(TINY["fcos"]))
    identity = {
        "stage": "image-domain",
        "method": "simsiam",
        "backbone": choice.config | {"style": style},
        "inputs": vars(choice.inputs),
    }
    model = {f"backbone.{name}": value for name, value in tiny_state().items()}
    return {
        "format": 1,
        "step": 7,
        "identity": identity,
        "model": model | {"projector.0.weight": torch.zeros(2, 2)},
    }


@pytest.fixture(params=["backbone.pth", "last.pth"])
def ours(request, tmp_path):
    """``ours(style)``: a file of the image-domain stage."""

    def write(style: str = "pytorch"):
        path, checkpoint = tmp_path / request.param, image_domain(style)
        if request.param == "backbone.pth":
            write_backbone(checkpoint, path)
        else:
            torch.save(checkpoint | {"identity": encoded(checkpoint["identity"])}, path)
        return path

    return write


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_our_own_backbone_brings_the_inputs_and_the_style_it_was_trained_with(ours, style):
    model = outcome(ours(style), TINY["faster_rcnn"])
    assert settings(read_config(TINY["faster_rcnn"], {}).model) == IMAGENET
    stock = read_config(TINY["fcos"], {}).model
    assert settings(model) == (list(stock.data_preprocessor.mean), [1.0, 1.0, 1.0], False)
    assert model["backbone"]["style"] == style


def test_an_image_domain_checkpoint_is_its_backbone_and_what_is_not(ours):
    converted, state = convert(ours()), tiny_state()
    assert converted.state.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in converted.state.items())
    assert set(converted.left.values()) <= {"projection head"}


@pytest.fixture(params=["with its config", "state dict"])
def caffe(request, tmp_path):
    """A detector's checkpoint of mmdet's caffe RetinaNet, and OpenMMLab's resnet50_caffe."""
    if request.param == "state dict":
        content = tensors(layouts.resnet50())
    else:
        text = read_config(mmdet_config("retinanet/retinanet_r50-caffe_fpn_1x_coco.py"), {}).pretty_text
        content = {
            "meta": {"cfg": text, "epoch": 12},
            "state_dict": tensors(layouts.prefixed("backbone.", layouts.resnet50())),
        }
    torch.save(content, tmp_path / "caffe.pth")
    return tmp_path / "caffe.pth"


def mmdet_config(name: str):
    from importlib.resources import files

    return files("mmdet").joinpath(".mim", "configs", *name.split("/"))


def test_caffes_weights_keep_caffes_stride_and_normalisation(caffe, request):
    model = outcome(caffe, TINY["fcos"], CAFFE_FIFTY)
    known = "config" in request.node.callspec.id
    assert settings(model) == (CAFFE if known else settings(read_config(TINY["fcos"], {}).model))
    assert settings(model)[1:] == CAFFE[1:]
    assert model["backbone"]["style"] == "caffe"


def test_a_checkpoint_with_its_config_brings_caffes_settings_into_another_detector(caffe, request):
    model = outcome(caffe, TINY["faster_rcnn"], FIFTY)
    known = "config" in request.node.callspec.id
    assert settings(model) == (CAFFE if known else IMAGENET)
    assert model["backbone"]["style"] == ("caffe" if known else "pytorch")


@pytest.mark.parametrize("form", ["last.pth", "exported"])
def test_a_box_domain_checkpoint_keeps_the_settings_of_its_detector(form, tmp_path, capsys):
    run = load_run_config(TINY["fcos"], {}, {})
    if form == "last.pth":
        state = build_pretrainer(run.stock_model, run.pretrain).state_dict()
        identity = encoded({"config": "tiny_fcos", "stock_model": run.stock_model})
        content = {"format": 1, "step": 7, "identity": identity, "model": state}
    else:
        content = {
            "state_dict": {f"backbone.{name}": value for name, value in tiny_state().items()},
            "meta": {},
        }
    torch.save(content, tmp_path / form)
    assert settings(outcome(tmp_path / form, TINY["fcos"])) == settings(run.stock_model)
    printed = capsys.readouterr().out
    assert ("warning: the file does not say" in printed) == (form == "exported")
    elsewhere = settings(outcome(tmp_path / form, TINY["faster_rcnn"]))
    assert elsewhere == (settings(run.stock_model) if form == "last.pth" else IMAGENET)


def test_torchvisions_names_mean_imagenets_normalisation_where_they_are_not_caffes(tmp_path):
    classifier = layouts.linear("fc", 256, 1000)
    torch.save(tensors(layouts.resnet50() | classifier), tmp_path / "torchvision.pth")
    assert settings(outcome(tmp_path / "torchvision.pth", TINY["fcos"], FIFTY)) == IMAGENET
    model = outcome(tmp_path / "torchvision.pth", TINY["fcos"], CAFFE_FIFTY)
    assert (settings(model)[2], model["backbone"]["style"]) == (False, "caffe")


def test_a_vit_of_unknown_normalisation_keeps_the_detectors_and_says_so(tmp_path):
    import timm

    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    vit = {"type": "TimmBackbone", "model_name": "test_vit", "out_indices": (1,)}
    inputs = {"mean": [127.5] * 3, "std": [127.5] * 3, "bgr_to_rgb": True}
    config = Config({"model": {"backbone": vit, "data_preprocessor": inputs}})
    options, converted, _ = plugged(tmp_path / "vit.pth", config)
    assert options == {"model.backbone.weights": str(tmp_path / "vit.pth")}
    assert "RGB, mean (127.5, 127.5, 127.5)" in kept_settings(converted, config)


@pytest.mark.parametrize(
    "text",
    [
        "model = (",
        "model = open('x')",
        "model = dict(backbone=dict())",
        "(" * 5000,
        "model = dict(backbone=5)",
        "x",
    ],
)
def test_a_config_that_is_none_is_as_good_as_missing(text, tmp_path):
    state = tensors(layouts.prefixed("backbone.", layouts.resnet50()))
    torch.save({"meta": {"cfg": text}, "state_dict": state}, tmp_path / "w.pth")
    assert outcome(tmp_path / "w.pth", TINY["fcos"], CAFFE_FIFTY)["backbone"]["style"] == "caffe"


@pytest.mark.parametrize("option", ["init_cfg", "weights"])
def test_the_file_is_loaded_although_an_option_takes_the_configs_weights_away(option, tmp_path):
    state = tiny_state()
    torch.save(state, tmp_path / "w.pth")
    given = {f"model.backbone.{option}": None, "model.backbone": {"frozen_stages": 1}}
    run = load_run_config(TINY["fcos"], {}, plugged_options(TINY["fcos"], given, tmp_path / "w.pth"))
    inside = build_pretrainer(run.stock_model, run.pretrain).student.backbone.state_dict()
    assert inside.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in inside.items())


@pytest.mark.parametrize(
    "given",
    [
        {"model.backbone.init_cfg.checkpoint": "other.pth"},
        {"model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "other.pth"}},
        {"model.backbone": {"init_cfg": None}},
        {"model": {"backbone": {"weights": "other.pth"}}},
    ],
    ids=json.dumps,
)
def test_options_that_name_other_weights_are_refused(given, tmp_path):
    torch.save(tiny_state(), tmp_path / "w.pth")
    with pytest.raises(AlignDetError, match=r"w\.pth and --cfg-options model\.backbone\.\w+ both name"):
        plugged_options(TINY["fcos"], given, tmp_path / "w.pth")


def test_only_settings_that_were_applied_are_called_the_weights_own(tmp_path, capsys):
    torch.save({"state_dict": tensors(layouts.moco_v2())}, tmp_path / "moco.pth")
    options = plugged_options(TINY["fcos"], CAFFE_FIFTY, tmp_path / "moco.pth")
    assert options["model.backbone.style"] == "caffe"
    assert options["model.data_preprocessor.bgr_to_rgb"] is True
    said = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("as the weights were trained")
    ]
    assert any("bgr_to_rgb=True" in line for line in said)
    assert not any("style" in line for line in said)


def recorded(path, inputs: dict, style: str = "pytorch"):
    """A file of `aligndet export`, as far as it says how images were seen."""
    model = {"backbone": {"type": "ResNet", "style": style}, "data_preprocessor": inputs}
    torch.save(
        {"state_dict": {"neck.weight": torch.zeros(1)}, "meta": {"stock_model": json.dumps(model)}}, path
    )
    return path


SEEN = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]}


def seen(backbone: str, **inputs: object) -> Config:
    return Config({"model": {"backbone": {"type": backbone}, "data_preprocessor": inputs}})


@pytest.mark.parametrize(
    ("style", "config", "options"),
    [
        ("pytorch", seen("ResNet", **SEEN), {}),
        ("pytorch", seen("ResNet", **SEEN, rgb_to_bgr=True), {"model.data_preprocessor.rgb_to_bgr": False}),
        ("caffe", seen("ResNet", **SEEN), {"model.backbone.style": "caffe"}),
        ("caffe", seen("SwinTransformer", **SEEN), {}),
        (
            "pytorch",
            seen("ResNet", pad_size_divisor=32),
            {f"model.data_preprocessor.{name}": value for name, value in SEEN.items()},
        ),
        ("pytorch", Config({"model": {"detector": {}}}), {}),
    ],
    ids=["same", "swap by its other name", "style", "no style", "no normalisation", "no backbone"],
)
def test_a_detector_sees_images_as_that_of_the_exported_weights(style, config, options, tmp_path):
    assert detector_settings(recorded(tmp_path / "model.pth", SEEN, style), config) == options


@pytest.mark.parametrize("mean", [10**400, "one", [1.0], None])
def test_weights_that_say_nonsense_of_their_images_change_nothing(mean, tmp_path):
    path = recorded(tmp_path / "model.pth", {"mean": [mean] * 3, "std": [1.0] * 3})
    assert detector_settings(path, seen("ResNet", mean=[9.0] * 3, std=[9.0] * 3)) == {}
