"""Configs of strangers: JSON and YAML are data whatever they hold, and Python can be refused."""

import json
import sys
from pathlib import Path

import mmdet
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, Registry

from aligndet_train.config import load_run_config, read_config, shipped_config
from aligndet_train.plain_config import read_plain, require_registered
from proposals.cli import main
from proposals.errors import AlignDetError
from tests.cli.conftest import TINY

VERBS = {
    "pretrain": "--data {dataset} --work-dir {out} --config {config}",
    "pretrain-backbone": "--data {dataset} --work-dir {out} --backbone {config}",
    "finetune": "--train {config} --work-dir {out} --config {config}",
    "evaluate": "--val {config} --weights {config} --work-dir {out} --config {config}",
    "regions": "{dataset} --backbone {config}",
}


@pytest.fixture(scope="module")
def tiny() -> str:
    """A whole detector config as JSON."""
    return json.dumps(Config.fromfile(TINY).to_dict())


@pytest.fixture
def plain(tiny: str) -> dict:
    """The same as values, to be changed."""
    return json.loads(tiny)


def _written(content: object, path: Path) -> Path:
    path.write_text(
        json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content, sort_keys=False)
    )
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_a_python_config_is_not_run_where_that_is_refused(verb, mined_dataset, tmp_path, monkeypatch, capfd):
    config = tmp_path / "stranger.py"
    config.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nmodel = dict(type='FCOS')\n")
    arguments = VERBS[verb].format(dataset=mined_dataset, out=tmp_path / "out", config=config).split()
    monkeypatch.setattr(sys, "argv", ["aligndet", verb, *arguments, "--no-python-config"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "--no-python-config" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_without_the_flag_it_is_run_which_is_what_the_help_says(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nmodel = dict(type='FCOS')\n")
    read_config(config, {})
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_plain_config_means_what_the_python_config_means(suffix, plain, tmp_path):
    ours = load_run_config(_written(plain, tmp_path / f"config{suffix}"), {}, {})
    theirs = load_run_config(TINY, {}, {})
    assert json.dumps(ours.stock_model) == json.dumps(theirs.stock_model)
    assert ours.pretrain == theirs.pretrain


@pytest.mark.parametrize("name", ["fcos_lite0", "deformable_detr", "htc", "mask_rcnn_swin_s"])
def test_shipped_detectors_are_accepted_as_data(name, tmp_path):
    stock = Config.fromfile(shipped_config(name))
    stock.dump(tmp_path / "config.json")
    read = read_plain(tmp_path / "config.json")
    assert read.model.type == stock.model.type
    assert json.dumps(read.train_dataloader) == json.dumps(stock.train_dataloader)


@pytest.mark.parametrize(
    ("stock", "word"),
    [
        ("cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py", "offset"),
        ("fpg/mask-rcnn_r50_fpg_crop640-50e_coco.py", "conv"),
        ("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py", "SimpleRoIAlign"),
    ],
)
def test_words_that_mmdet_reads_by_itself_are_no_unknown_classes(stock, word):
    model = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / stock).model.to_dict()
    assert f"'type': '{word}'" in str(model)
    require_registered(model, "the config")


def test_such_a_word_is_refused_where_a_class_is_looked_up():
    with pytest.raises(AlignDetError, match="offset"):
        require_registered({"neck": {"type": "offset"}}, "the config")
    with pytest.raises(AlignDetError, match="type"):
        require_registered({"adapt_cfg": {"type": ["offset"]}}, "the config")


def test_a_class_of_another_scope_is_known_where_that_has_registered_it():
    theirs = Registry("model", parent=MODELS, scope="theirs")
    try:
        theirs.register_module(name="ConvNeXt", module=torch.nn.Identity)
        theirs.register_module(name="RFSearchHook", module=torch.nn.Identity)
        require_registered({"backbone": {"type": "theirs.ConvNeXt"}}, "the config")
        for name in ("theirs.Other", "others.ConvNeXt", "theirs.RFSearchHook"):
            with pytest.raises(AlignDetError, match=name):
                require_registered({"backbone": {"type": name}}, "the config")
    finally:
        MODELS.children.pop("theirs")


HOSTILE = {
    "a Python base": ({"_base_": "evil.py"}, "_base_"),
    "imports": ({"custom_imports": {"imports": ["evil"]}}, "custom_imports"),
    "a type by its path": ({"model": {"type": "os.system", "command": "touch ran"}}, "os.system"),
    "a function of mmengine's": ({"model": {"type": "mmengine.load", "file": "x.pkl"}}, "mmengine.load"),
    "a module": ({"model": {"type": "evil"}}, "evil"),
    "an expression": ({"model": {"test_cfg": {"nms": {"type": "exit(7)"}}}}, "exit"),
    "a hook that evaluates": ({"custom_hooks": [{"type": "RFSearchHook"}]}, "RFSearchHook"),
    "a constructor": ({"optim_wrapper": {"constructor": "os.system"}}, "os.system"),
    "a scope": ({"model": {"_scope_": "evil"}}, "evil"),
    "a type that is no name": ({"model": {"type": ["os", "system"]}}, "os"),
}


@pytest.mark.parametrize(("change", "named"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("suffix", [".json", pytest.param(".yaml", marks=pytest.mark.slow)])
def test_a_plain_config_that_would_run_code_is_refused(suffix, change, named, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    for key, value in change.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(AlignDetError, match=named):
        read_config(_written(plain, tmp_path / f"config{suffix}"), {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nmodel: [*b, *b]", "alias"),
        ("model: [" + "[" * 5000, "cannot be read"),
        ("- just\n- a list", "no config"),
        ("model: {1: 2", "cannot be read"),
    ],
    ids=["object", "laughs", "deep", "list", "cut"],
)
def test_yaml_is_plain_data(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(AlignDetError, match=reason):
        read_config(tmp_path / "config.yaml", {})
    assert not (tmp_path / "ran").exists()
