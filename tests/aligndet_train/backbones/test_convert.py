"""Each published layout, converted: every key accounted for, every tensor where it belongs, the same features."""

import argparse
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from aligndet_train.backbones import TimmBackbone
from aligndet_train.backbones.convert import Converted, convert
from aligndet_train.backbones.plug import fit
from proposals.errors import AlignDetError
from tests.aligndet_train.backbones import layouts
from tests.aligndet_train.backbones.layouts import tensors

SMALL_RESNET = {"type": "ResNet", "depth": 50, "stem_channels": 8, "base_channels": 8}
SMALL_SWIN = {
    "type": "SwinTransformer",
    "embed_dims": 8,
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 4, 8),
    "window_size": 6,
    "drop_path_rate": 0.0,
}


def saved(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def accounted(converted: Converted, state: dict[str, torch.Tensor]) -> None:
    """Every key of the file is used or left, not both; and what is used has its tensor."""
    assert converted.used.keys() | converted.left.keys() == state.keys()
    assert not converted.used.keys() & converted.left.keys()
    assert sorted(converted.used.values()) == sorted(converted.state)


def moco() -> dict:
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": tensors(layouts.moco_v2()),
        "optimizer": {"state": {}},
    }


def pixpro() -> dict:
    return {"opt": argparse.Namespace(arch="resnet50"), "model": tensors(layouts.pixpro()), "epoch": 400}


def dino_resnet() -> dict:
    teacher = layouts.prefixed("backbone.", layouts.resnet50()) | layouts.prefixed(
        "head.", layouts.dino_head(256)
    )
    student = layouts.prefixed("module.", teacher)
    parts = {"student": tensors(student, seed=1), "teacher": tensors(teacher), "epoch": 800}
    return parts | {"args": argparse.Namespace(arch="resnet50"), "dino_loss": {"center": torch.zeros(1, 32)}}


def mmpretrain() -> dict:
    head = layouts.linear("head.fc", 256, 10)
    return {
        "meta": {"epoch": 90},
        "state_dict": tensors(layouts.prefixed("backbone.", layouts.resnet50()) | head),
    }


def moco_v3() -> dict:
    head = layouts.linear("fc.0", 256, 64, bias=False) | layouts.batch_norm("fc.1", 64)
    encoders = [
        layouts.prefixed(f"module.{name}.", layouts.resnet50() | head)
        for name in ("base_encoder", "momentum_encoder")
    ]
    predictor = layouts.prefixed("module.predictor.", layouts.linear("0", 64, 64, bias=False))
    return {"epoch": 300, "state_dict": tensors(encoders[0] | encoders[1] | predictor)}


def official_simsiam() -> dict:
    encoder = layouts.prefixed(
        "module.encoder.", layouts.resnet50() | layouts.linear("fc.0", 256, 256, bias=False)
    )
    return {
        "arch": "resnet50",
        "state_dict": tensors(encoder | layouts.linear("module.predictor.3", 64, 256)),
    }


RESNETS = {
    "MoCo v3": (moco_v3, "state_dict", "module.base_encoder.", {"projection head", "momentum encoder", "predictor"}),
    "SimSiam": (official_simsiam, "state_dict", "module.encoder.", {"projection head", "predictor"}),
    "MoCo v1/v2": (moco, "state_dict", "module.encoder_q.", {"projection head", "momentum encoder", "queue of keys"}),
    "SwAV": (lambda: tensors(layouts.swav()), None, "module.", {"projection head", "prototypes"}),
    "PixPro": (pixpro, "model", "module.encoder.", {"momentum encoder", "projection head", "pixel propagation"}),
    "DINO": (dino_resnet, "teacher", "backbone.", {"projection head"}),
    "mmengine (mmpretrain, mmdet)": (mmpretrain, "state_dict", "backbone.", {"neck or head"}),
    "a backbone alone (torchvision, timm, DINO)": (
        lambda: tensors(layouts.resnet50() | layouts.linear("fc", 256, 1000)), None, "", {"classifier"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("project", RESNETS)
def test_a_published_resnet_fills_mmdets(project, tmp_path):
    make, entry, prefix, reasons = RESNETS[project]
    content = make()
    state = content[entry] if entry else content
    converted = convert(saved(tmp_path, content))
    assert (converted.project, converted.family.name) == (project, "ResNet")
    accounted(converted, state)
    assert set(converted.left.values()) == reasons
    assert converted.state.keys() == layouts.resnet50().keys()
    assert all(torch.equal(value, state[prefix + name]) for name, value in converted.state.items())
    fitted = fit(converted, SMALL_RESNET)
    assert fitted.complete
    assert not fitted.unexpected
    assert not fitted.left_at_init
    assert not fit(
        converted, {"type": "ResNet", "depth": 101, "stem_channels": 8, "base_channels": 8}
    ).complete
    assert fit(converted, {"type": "ResNet", "depth": 50}).mismatched


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2_becomes_timms_vit(registers, chunked, tmp_path):
    shapes = layouts.dinov2(registers, chunked)
    if chunked:  # a training checkpoint, with heads
        heads = layouts.prefixed("dino_head.", layouts.dino_head(16)) | layouts.prefixed(
            "ibot_head.", layouts.dino_head(16)
        )
        shapes = layouts.prefixed("backbone.", shapes) | heads
    state = tensors(shapes)
    converted = convert(saved(tmp_path, {"teacher": state} if chunked else state))
    assert (converted.project, converted.family.name) == ("DINOv2", "ViT")
    accounted(converted, state)
    model = VisionTransformer(
        img_size=56, patch_size=14, embed_dim=16, depth=2, num_heads=2, num_classes=0, init_values=1e-5,
        reg_tokens=registers, no_embed_class=registers > 0,
    )  # fmt: skip
    model.load_state_dict(converted.state, strict=True)
    positions = state["backbone.pos_embed" if chunked else "pos_embed"]
    assert torch.equal(converted.state["pos_embed"], positions[:, 1:] if registers else positions)


MAE_DECODER = {"decoder_pos_embed": (1, 17, 8), "decoder_norm.weight": (8,)} | {
    f"decoder_{name}": shape
    for name, shape in layouts.vit(width=8, depth=1).items()
    if name.startswith("blocks.")
}


@pytest.mark.parametrize(
    ("project", "more", "reasons"),
    [
        ("MAE", MAE_DECODER | {"mask_token": (1, 1, 8)}, {"mask token", "decoder"}),
        (
            "a ViT with a mask token (BEiT)",
            {"mask_token": (1, 1, 16), "blocks.0.gamma_1": (16,)} | layouts.linear("lm_head", 16, 32),
            {"mask token", "head for the masked patches"},
        ),
    ],
)
def test_other_masked_vits_are_no_dinov2(project, more, reasons, tmp_path):
    state = tensors(layouts.vit() | more)
    converted = convert(saved(tmp_path, {"model": state}))
    assert (converted.project, converted.family.name) == (project, "ViT")
    accounted(converted, state)
    assert set(converted.left.values()) == reasons
    assert not any("decoder" in name or "mask" in name for name in converted.state)


def test_a_unet_is_no_simmim(tmp_path):
    state = tensors(layouts.prefixed("encoder.", layouts.resnet50()) | layouts.linear("decoder.0", 8, 8))
    assert convert(saved(tmp_path, state)).project == "a backbone alone (torchvision, timm, DINO)"


def test_a_swin_v2_is_no_swin(tmp_path):
    with torch.device("meta"):
        state = torchvision.models.swin_v2_t().state_dict()
    path = saved(tmp_path, {name: torch.zeros(()).expand(value.shape) for name, value in state.items()})
    assert convert(path).family.name == "other"


def test_blocks_that_begin_anew_in_every_stage_keep_their_names(tmp_path):
    state = timm.create_model("twins_svt_small").state_dict()
    converted = convert(saved(tmp_path, state))
    assert {name for name in state if name.startswith("blocks.")} <= converted.state.keys()
    assert all(torch.equal(value, state[name]) for name, value in converted.state.items())


@pytest.mark.parametrize(
    "more",
    [
        {"module.conv1.weight": (8, 3, 7, 7)},
        {"blocks.0.0.attn.qkv.weight": (48, 16), "blocks.0.1.x": (1,), "blocks.1.1.x": (1,)},
    ],
)
def test_keys_that_would_get_one_name_are_refused(more, tmp_path):
    with pytest.raises(AlignDetError, match="it is damaged, or of a layout this does not know"):
        convert(saved(tmp_path, tensors(layouts.resnet50() | more)))


def test_dinos_vit_is_timms(tmp_path):
    state = tensors(
        layouts.prefixed("backbone.", layouts.vit()) | layouts.prefixed("head.", layouts.dino_head(16))
    )
    converted = convert(saved(tmp_path, {"teacher": state, "student": tensors({"module.backbone.x": (1,)})}))
    assert (converted.project, converted.family.name) == ("DINO", "ViT")
    accounted(converted, state)
    assert "student" in converted.file.beside
    VisionTransformer(img_size=64, embed_dim=16, depth=2, num_heads=2, num_classes=0).load_state_dict(
        converted.state
    )


def build(config: dict) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(ConfigDict(config))


def through_mmengine(config: dict, path: Path) -> torch.nn.Module:
    """The backbone as a config with the scheme initialises it."""
    checkpoint = f"aligndet-backbone:{config['type']}:{path}"
    module = build(
        config | {"init_cfg": {"type": "Pretrained", "prefix": "backbone.", "checkpoint": checkpoint}}
    )
    module.init_weights()
    module.eval()
    return module


def test_simmims_swin_fills_mmdets_through_its_own_loader(tmp_path):
    state = tensors(layouts.simmim())
    path = saved(tmp_path, {"model": state, "epoch": 99, "optimizer": {}})
    converted = convert(path)
    assert (converted.project, converted.family.name) == ("SimMIM", "Swin")
    accounted(converted, state)
    assert set(converted.left.values()) == {"mask token", "decoder", "recomputed from the window size"}
    fitted = fit(converted, SMALL_SWIN)
    assert fitted.complete
    assert not fitted.unexpected
    assert {name.split(".")[0] for name in fitted.left_at_init if "index" not in name} == {
        "norm0",
        "norm1",
        "norm2",
    }
    module = through_mmengine(SMALL_SWIN, path)
    assert torch.equal(
        module.stages[2].blocks[1].attn.w_msa.qkv.weight, state["encoder.layers.2.blocks.1.attn.qkv.weight"]
    )
    assert torch.equal(module.norm3.bias, state["encoder.norm.bias"])
    assert fit(converted, SMALL_SWIN | {"window_size": 7}).complete, "mmdet interpolates the tables"


@pytest.mark.parametrize("source", ["timm", "torchvision", "microsoft"])
def test_a_swin_gives_the_same_features_in_mmdet(source, tmp_path):
    torch.manual_seed(0)
    if source == "torchvision":
        model = TorchvisionSwin(
            [4, 4], 8, [1, 1, 2, 1], [1, 2, 4, 8], [6, 6], stochastic_depth_prob=0.0
        ).eval()
        features = lambda images: model.norm(model.features(images))  # noqa: E731
    else:
        model = TimmSwin(
            img_size=192,
            embed_dim=8,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 4, 8),
            window_size=6,
            drop_path_rate=0.0,
        ).eval()
        features = model.forward_features
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = model.state_dict()
    if source == "microsoft":  # merges are of the stage before
        for stage in (1, 2, 3):
            for name in [name for name in state if name.startswith(f"layers.{stage}.downsample.")]:
                state[name.replace(f"layers.{stage}", f"layers.{stage - 1}")] = state.pop(name)
    path = saved(tmp_path, state)
    ours = through_mmengine(SMALL_SWIN, path)
    images = torch.rand(1, 3, 192, 192)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images)[-1], features(images).permute(0, 3, 1, 2), rtol=1e-3, atol=1e-3
        )
    if source == "timm":  # and back again, bit by bit
        again = convert(path).for_backbone("TimmBackbone")
        assert all(
            torch.equal(again[name], value) for name, value in state.items() if not name.startswith("head.")
        )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvisions_networks_give_the_same_features_in_mmdet(name, tmp_path):
    torch.manual_seed(0)
    if name == "resnet18":
        model = torchvision.models.resnet18().eval()
        parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        trunk, config = (
            torch.nn.Sequential(*(getattr(model, part) for part in parts)),
            {"type": "ResNet", "depth": 18},
        )
    else:
        model = torchvision.models.mobilenet_v2(width_mult=0.25).eval()
        trunk, config = model.features, {"type": "MobileNetV2", "widen_factor": 0.25, "out_indices": (7,)}
    path = saved(tmp_path, model.state_dict())
    converted = convert(path)
    accounted(converted, model.state_dict())
    assert set(converted.left.values()) == {"classifier"}
    assert fit(converted, config).complete
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(through_mmengine(config, path)(images)[-1], trunk(images))


def test_a_timm_model_takes_a_moco_file(tmp_path):
    small = timm.create_model("resnet10t", pretrained=False).state_dict()
    head = {name for name in small if name.startswith("fc.")}
    state = {f"module.encoder_q.{name}": value for name, value in small.items() if name not in head}
    path = saved(tmp_path, {"state_dict": state | {"module.queue": torch.zeros(4, 8)}})
    backbone = TimmBackbone("resnet10t", (1, 2), weights=str(path))
    backbone.init_weights()
    assert torch.equal(backbone.timm_model.layer2[0].conv1.weight, small["layer2.0.conv1.weight"])
    wrong = TimmBackbone("resnet18", (1, 2), weights=str(path))
    with pytest.raises(AlignDetError, match="Is it another model's"):
        wrong.init_weights()


def test_a_yacs_config_beside_the_tensors_is_read_as_data(tmp_path, monkeypatch):
    """As SimMIM and Swin save it; yacs itself need not be there."""
    import sys
    import types

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    path = saved(tmp_path, {"model": tensors(layouts.simmim()), "config": CfgNode(A=CfgNode(B=1))})
    monkeypatch.undo()
    assert convert(path).project == "SimMIM"


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_not_run(tmp_path, legacy):
    state = {"state_dict": tensors(layouts.moco_v2()), "hook": Payload(tmp_path / "ran")}
    torch.save(state, tmp_path / "bad.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(AlignDetError, match=r"bad\.pth holds pickled code \(.*\), which is refused"):
        convert(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not named tensors"),
        ({"epoch": 3}, "holds no tensors; its entries: epoch"),
        ({"state_dict": {}}, "holds no tensors"),
    ],
)
def test_files_without_weights_say_what_they_hold(content, message, tmp_path):
    with pytest.raises(AlignDetError, match=message):
        convert(saved(tmp_path, content))
    with pytest.raises(AlignDetError, match="no weights at"):
        convert(tmp_path / "gone.pth")
