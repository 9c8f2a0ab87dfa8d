"""Exported weights in the stock detector: every key accounted for, predictions possible."""

import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.runner import load_checkpoint as mmengine_load
from safetensors.torch import load_file

from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.checkpoint import save_checkpoint
from aligndet_train.config import head_type, load_run_config, read_config
from aligndet_train.detectors import adapter_for
from aligndet_train.export import export, exported_state, key_report
from proposals.cli import main
from proposals.errors import AlignDetError
from tests.aligndet_train.detectors_zoo import tiny_run

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def checkpoint(run, tmp_path):
    """A checkpoint of the run's initial weights."""
    model = build_pretrainer(run.stock_model, run.pretrain)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return save_checkpoint(
        tmp_path, model, optimizer, 1, {"config": run.name, "stock_model": run.stock_model}
    )


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("keep", [False, True])
def test_stock_detector_loads_and_predicts(run, checkpoint, tmp_path, name, keep):
    out = tmp_path / name
    report = export(checkpoint, out, keep_predictors=keep)
    stock = build_detector(run.stock_model)
    assert set(report.loaded) | set(report.left_at_init) == set(stock.state_dict())
    assert not report.unexpected
    state = (
        load_file(out) if out.suffix == ".safetensors" else torch.load(out, weights_only=True)["state_dict"]
    )
    missing, unexpected = stock.load_state_dict(state, strict=False)
    assert sorted(missing) == sorted(report.left_at_init)
    assert not unexpected
    stock.eval()
    predictors = {n for n in report.left_at_init if "cls" not in n}
    assert bool(predictors) != keep
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo={"img_shape": (64, 96), "scale_factor": (1.0, 1.0), "ori_shape": (64, 96)}
    )
    (prediction,) = stock.predict(torch.randn(1, 3, 64, 96), [sample])
    assert prediction.pred_instances.bboxes.shape[1] == 4


def test_mmengine_reads_the_pth_as_any_other(run, checkpoint, tmp_path):
    export(checkpoint, tmp_path / "m.pth")
    student = torch.load(checkpoint, weights_only=True)["model"]
    stock = build_detector(run.stock_model)
    mmengine_load(stock, str(tmp_path / "m.pth"), strict=False)
    for name, value in stock.neck.state_dict().items():
        assert torch.equal(value, student[f"student.neck.{name}"])


def test_kept_box_regressor_serves_every_class(run, checkpoint, tmp_path):
    if head_type(run.stock_model) != "Shared2FCBBoxHead":
        pytest.skip("only RoI heads have a regressor per class")
    export(checkpoint, tmp_path / "m.safetensors", keep_predictors=True)
    exported = load_file(tmp_path / "m.safetensors")["roi_head.bbox_head.fc_reg.weight"]
    trained = torch.load(checkpoint, weights_only=True)["model"]["student.roi_head.bbox_head.fc_reg.weight"]
    assert exported.shape[0] == 80 * 4
    assert all(torch.equal(rows, trained) for rows in exported.split(4))


@pytest.mark.parametrize(("name", "layer"), [("yolof", "object_pred"), ("tood", "cls_prob_module")])
def test_layers_that_no_loss_reached_are_left_to_the_stock_detector(name, layer):
    run = tiny_run(name)
    state = build_pretrainer(run.stock_model, run.pretrain).state_dict()
    assert any(layer in key for key in state)
    exported, stock = exported_state(
        {"identity": {"stock_model": run.stock_model}, "model": state}, keep_predictors=True
    )
    assert not [key for key in exported if layer in key]
    assert any(layer in key for key in key_report(exported, stock).left_at_init)


def test_other_extensions_are_refused(checkpoint, tmp_path):
    with pytest.raises(AlignDetError, match=r"\.safetensors or \.pth"):
        export(checkpoint, tmp_path / "m.onnx")


def test_nothing_but_a_backbone_is_an_error(run, checkpoint, tmp_path, monkeypatch, capfd):
    state = torch.load(checkpoint, weights_only=True)
    state["model"] = {n: v for n, v in state["model"].items() if n.startswith("student.backbone.")}
    torch.save(state, checkpoint)
    monkeypatch.setattr(sys, "argv", ["aligndet", "export", str(checkpoint), str(tmp_path / "m.pth")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "nothing but the backbone" in capfd.readouterr().err


def test_weights_with_several_names_are_written_under_each(tmp_path):
    run = load_run_config(CONFIGS / "tiny_deformable_detr.py", {}, {})
    model = build_pretrainer(run.stock_model, run.pretrain)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    last = save_checkpoint(
        tmp_path, model, optimizer, 1, {"config": run.name, "stock_model": run.stock_model}
    )
    export(last, tmp_path / "m.safetensors")
    export(last, tmp_path / "m.pth")
    written = load_file(tmp_path / "m.safetensors")
    expected = torch.load(tmp_path / "m.pth", weights_only=True)["state_dict"]
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert written["bbox_head.reg_branches.0.0.weight"].equal(written["bbox_head.reg_branches.1.0.weight"])


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (
            "sabl/sabl-faster-rcnn_r50_fpn_1x_coco",
            ["roi_head.bbox_head.fc_reg_cls", "roi_head.bbox_head.fc_reg_offset"],
        ),
        ("grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco", ["roi_head.grid_head.deconv2"]),
        ("dab_detr/dab-detr_r50_8xb2-50e_coco", ["bbox_head.fc_reg.layers.2"]),
        ("conditional_detr/conditional-detr_r50_8xb2-50e_coco", ["bbox_head.fc_reg"]),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", ["roi_head.bbox_head.fc_reg"]),
    ],
)  # fmt: skip
def test_of_the_boxes_the_last_layer_alone_is_left_out(config, layers):
    stock = read_config(Path(mmdet.__file__).parent / ".mim" / "configs" / f"{config}.py", {}).model.to_dict()
    predictors = adapter_for(stock["type"], head_type(stock)).predictors
    with torch.device("meta"):
        names = build_detector(stock | {"backbone": {**stock["backbone"], "init_cfg": None}}).state_dict()
    left_out = [
        name for name in names if name.startswith(predictors) and "cls." not in name.replace("reg_cls.", "")
    ]
    assert sorted({name.rpartition(".")[0] for name in left_out}) == layers
