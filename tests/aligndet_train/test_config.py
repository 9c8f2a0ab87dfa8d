"""Configs: stock files work as they are, unknown keys are errors, precedence holds."""

import pytest

from aligndet_train.cli import parse_options
from aligndet_train.config import available_detectors, load_run_config, shipped_config
from proposals.errors import AlignDetError


@pytest.mark.parametrize("name", available_detectors())
def test_shipped_configs_load(name):
    run = load_run_config(shipped_config(name), {}, {})
    assert run.stock_model["type"] in {"FCOS", "FasterRCNN"}
    assert run.pretrain.batch_size >= 1


def test_a_stock_config_gets_its_familys_defaults(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n")
    run = load_run_config(path, {"seed": 3}, {"model.backbone.depth": 18})
    assert run.pretrain.optimizer["lr"] == 0.02
    assert run.pretrain.seed == 3
    assert run.stock_model["backbone"]["depth"] == 18


@pytest.mark.parametrize("line", ["pretrain = dict(epoch=3)", "pretrain = dict(views=dict(shortside=3))"])
def test_unknown_keys_name_file_and_known_keys(tmp_path, line):
    path = tmp_path / "typo.py"
    path.write_text(f"_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'\n{line}\n")
    with pytest.raises(AlignDetError, match=r"typo\.py.*unknown keys (epoch|shortside); known: .*"):
        load_run_config(path, {}, {})


def test_missing_files_and_names():
    with pytest.raises(AlignDetError, match=r"shipped: .*fcos"):
        shipped_config("fcoss")


def test_options_are_literals_or_text():
    assert parse_options(["a.b=None", "c=1e-3", "d=[1, 2]", "e=path/to=x"]) == {
        "a.b": None,
        "c": 1e-3,
        "d": [1, 2],
        "e": "path/to=x",
    }
    with pytest.raises(AlignDetError, match="key=value"):
        parse_options(["novalue"])
