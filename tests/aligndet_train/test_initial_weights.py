"""Weights that a config names for its backbone: in the file, or no run begins."""

from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from aligndet_train.box_domain import BoxDomainPretrainer, build_pretrainer
from aligndet_train.config import load_run_config
from aligndet_train.initial_weights import load_initial_weights
from aligndet_train.regions import RegionEncoder, region_settings
from proposals.errors import AlignDetError
from tests.aligndet_train.conftest import TINY

BACKBONE, DETECTOR = "model.backbone.init_cfg", "model.init_cfg"
KAIMING = {"type": "Kaiming", "layer": "Conv2d"}
STRANGERS = {
    "no_file_of_torchs.pth": lambda path: path.write_text("<html>not found</html>"),
    "more_than_tensors.pth": lambda path: torch.save(
        {"state_dict": {}, "meta": {"folder": Path("data")}}, path
    ),
    "cut_off.pth": lambda path: path.write_bytes(b"PK\x03\x04"),
}


def from_file(path, others=()):
    named = {"type": "Pretrained", "checkpoint": str(path)}
    return [*others, named] if others else {"_delete_": True, **named}


def begun(init_cfg, option=BACKBONE) -> BoxDomainPretrainer:
    if option == DETECTOR and isinstance(init_cfg, dict):
        init_cfg = {name: value for name, value in init_cfg.items() if name != "_delete_"}
    run = load_run_config(TINY["fcos"], {}, {option: init_cfg})
    return build_pretrainer(run.stock_model, run.pretrain)


@pytest.fixture(scope="module")
def weights():
    """Of the tiny detector's backbone, by its own names, none of them as they are initialised."""
    run = load_run_config(TINY["fcos"], {}, {})
    backbone = build_pretrainer(run.stock_model, run.pretrain).student.backbone
    return {name: value + 1 for name, value in backbone.state_dict().items()}


@pytest.mark.parametrize(
    ("option", "prefix", "others"),
    [(BACKBONE, "", ()), (BACKBONE, "", [KAIMING]), (DETECTOR, "backbone.", ())],
)
def test_a_backbone_is_as_its_file_has_it(option, prefix, others, weights, tmp_path):
    file = tmp_path / "backbone.pth"
    torch.save({"state_dict": {f"{prefix}{name}": value for name, value in weights.items()}}, file)
    model = begun(from_file(file, others), option)
    assert model.remarks == ()
    assert all(
        torch.equal(value, weights[name]) for name, value in model.student.backbone.state_dict().items()
    )


@pytest.mark.parametrize("option", [BACKBONE, DETECTOR])
@pytest.mark.parametrize("others", [(), [KAIMING]])
@pytest.mark.parametrize("wrong", ["names", "shapes", "none"])
def test_weights_of_another_architecture_are_refused(option, others, wrong, weights, tmp_path):
    changed = {
        "names": {f"module.encoder.{name}": value for name, value in weights.items()},
        "shapes": {name: torch.zeros(*value.shape, 2) for name, value in weights.items()},
        "none": {},
    }[wrong]
    file = tmp_path / "backbone.pth"
    torch.save({"state_dict": changed}, file)
    with pytest.raises(
        AlignDetError, match=r"backbone\.pth fills 0% of the backbone .*--backbone-weights FILE"
    ):
        begun(from_file(file, others), option)


def test_what_a_file_leaves_out_is_told(weights, tmp_path):
    file = tmp_path / "backbone.pth"
    kept = {name: value for name, value in weights.items() if not name.startswith("layer1.0.")}
    torch.save({"state_dict": kept}, file)
    (remark,) = begun(from_file(file)).remarks
    assert "6 of its 60 parameters keep their initial values, first backbone.layer1.0.conv1.weight" in remark


def test_a_detectors_file_may_be_of_its_neck_alone(weights, tmp_path):
    run = load_run_config(TINY["fcos"], {}, {})
    neck = build_pretrainer(run.stock_model, run.pretrain).student.neck.state_dict()
    file = tmp_path / "neck.pth"
    torch.save({f"neck.{name}": torch.full_like(value, 0.5) for name, value in neck.items()}, file)
    model = begun(from_file(file), DETECTOR)
    assert all(bool((value == 0.5).all()) for value in model.student.neck.state_dict().values())
    (remark,) = model.remarks
    assert "neck.pth fills 0.0% of the backbone: 60 of its 60 parameters keep" in remark


class OfParts(BaseModule):
    """A backbone that loads its weights by itself: into a part of it, or before anybody asks."""

    def __init__(self, file: Path, early: bool) -> None:
        super().__init__(None if early else {"type": "Pretrained", "checkpoint": str(file)})
        self.pretrained = str(file) if early else None
        self.part = nn.Conv2d(3, 8, 1)
        if early:
            self.part.load_state_dict(torch.load(file, weights_only=True))

    def init_weights(self) -> None:
        if self.pretrained is None:
            self.part.load_state_dict(torch.load(self.init_cfg["checkpoint"], weights_only=True))


@pytest.mark.parametrize("early", [False, True])
def test_a_backbone_may_load_its_weights_by_itself(early, tmp_path):
    torch.save(nn.Conv2d(3, 8, 1).state_dict(), tmp_path / "part.pth")
    backbone = OfParts(tmp_path / "part.pth", early)
    assert load_initial_weights(backbone, backbone) == []


@pytest.mark.parametrize("name", sorted(STRANGERS))
def test_a_file_that_cannot_be_read_is_the_files_fault(name, tmp_path):
    STRANGERS[name](tmp_path / name)
    with pytest.raises(AlignDetError, match=rf"{name} cannot be loaded .*backbone inspect"):
        begun(from_file(tmp_path / name))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            BACKBONE,
            "torchvision://resnet18",
            r"model\.backbone\.init_cfg is 'torchvision.*--backbone-weights FILE",
        ),
        (BACKBONE, ["torchvision://resnet18"], r"model\.backbone\.init_cfg is "),
        (DETECTOR, "fcos.pth", r"model\.init_cfg is 'fcos\.pth'"),
        ("model.backbone", None, "has no `backbone` of settings"),
    ],
)
def test_initialisers_that_mmengine_would_not_take_are_named(option, value, message):
    with pytest.raises(AlignDetError, match=message):
        load_run_config(TINY["fcos"], {}, {option: value})


def test_features_are_of_no_backbone_that_its_weights_do_not_fill(tmp_path):
    file = tmp_path / "backbone.pth"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, file)
    settings = region_settings(str(TINY["fcos"]), {BACKBONE: from_file(file)}, 96, 192)
    with pytest.raises(AlignDetError, match=r"backbone\.pth fills 0% of the backbone"):
        RegionEncoder(settings)
