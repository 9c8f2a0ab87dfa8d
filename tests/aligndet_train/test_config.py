"""Configs: stock files work as they are, unknown keys are errors, precedence holds."""

import inspect
import re
from dataclasses import replace
from importlib.resources import files

import pytest
from mmengine.config import Config
from mmengine.runner import runner

from aligndet_train.box_domain import build_pretrainer
from aligndet_train.cli import parse_options
from aligndet_train.config import available_detectors, load_run_config, read_config, shipped_config
from aligndet_train.initial_weights import names_weights
from proposals.errors import AlignDetError

STOCK_FCOS = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"


@pytest.mark.parametrize("name", available_detectors())
def test_shipped_configs_load(name):
    run = load_run_config(shipped_config(name), {}, {})
    assert run.stock_model["type"]
    assert run.pretrain.batch_size >= 1


# AlignDet's released configs: optimiser, learning rate, clipping, epochs, batch size, warm-up, proposals, backbone.
RELEASED = {
    "fcos": ("SGD", 0.01, None, 12, 16, 500, None, "torchvision://resnet50"),
    "retinanet": ("SGD", 0.01, None, 12, 16, 500, 50, "torchvision://resnet50"),
    "faster_rcnn": ("SGD", 0.02, None, 12, 16, 500, None, "torchvision://resnet50"),
    "mask_rcnn": ("SGD", 0.02, None, 12, 16, 500, None, "torchvision://resnet50"),
    "htc": ("SGD", 0.02, None, 12, 16, 500, None, "torchvision://resnet50"),
    "detr": ("AdamW", 2e-4, 0.1, 50, 64, 0, 50, "torchvision://resnet50"),
    "deformable_detr": ("AdamW", 2e-4, 0.1, 12, 32, 0, 150, "torchvision://resnet50"),
    "mask_rcnn_r18": ("SGD", 0.02, None, 12, 16, 500, None, "torchvision://resnet18"),
    "mask_rcnn_mbv2": ("SGD", 0.02, None, 12, 16, 500, None, "open-mmlab://mmdet/mobilenet_v2"),
}


@pytest.mark.parametrize("name", RELEASED)
def test_shipped_configs_have_the_released_values(name):
    run = load_run_config(shipped_config(name), {}, {})
    config, backbone = run.pretrain, run.stock_model["backbone"]
    assert (
        config.optimizer["type"], config.optimizer["lr"], config.clip_grad, config.epochs, config.base_batch_size,
        config.warmup_steps, config.proposals_per_image, backbone["init_cfg"]["checkpoint"],
    ) == RELEASED[name]  # fmt: skip
    assert backbone.get("style", "pytorch") == "pytorch"
    assert run.stock_model["data_preprocessor"]["bgr_to_rgb"]
    assert config.optimizer["weight_decay"] == 1e-4
    assert (config.temperature, config.momentum_start, config.momentum_end) == (0.5, 0.996, 1.0)


@pytest.mark.parametrize(
    ("stock", "released"),
    [
        ("detr/detr_r50_8xb2-150e_coco", "detr"),
        ("dab_detr/dab-detr_r50_8xb2-50e_coco", "detr"),
        ("deformable_detr/deformable-detr_r50_16xb2-50e_coco", "deformable_detr"),
        ("dino/dino-4scale_r50_8xb2-12e_coco", "deformable_detr"),
        ("ddq/ddq-detr-4scale_r50_8xb2-12e_coco", "deformable_detr"),
    ],
)
def test_a_stock_query_detector_has_what_the_release_has_for_its_kind(stock, released, tmp_path):
    (tmp_path / "mine.py").write_text(f'_base_ = "mmdet::{stock}.py"\n')
    ours = load_run_config(tmp_path / "mine.py", {}, {}).pretrain
    assert ours == load_run_config(shipped_config(released), {}, {}).pretrain


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "mask_rcnn_r18"])
def test_samplers_of_pretraining_are_not_those_of_fine_tuning(name):
    pretrained = load_run_config(shipped_config(name), {}, {}).stock_model["train_cfg"]
    assert pretrained["rpn"]["sampler"]["num"] == 4096
    assert pretrained["rcnn"]["assigner"]["match_low_quality"] is True
    assert pretrained["rcnn"]["assigner"]["pos_iou_thr"] == 0.5
    stock = "mask_rcnn/mask-rcnn_r50" if name.startswith("mask") else "faster_rcnn/faster-rcnn_r50"
    usual = Config.fromfile(files("mmdet") / ".mim" / "configs" / f"{stock}_fpn_1x_coco.py").model.train_cfg
    assert read_config(shipped_config(name), {}).model.train_cfg == usual


def test_an_option_wins_over_what_the_file_says_of_pretraining():
    options = {"model.train_cfg.rpn.sampler.num": 512}
    run = load_run_config(shipped_config("faster_rcnn"), {}, options)
    assert run.stock_model["train_cfg"]["rpn"]["sampler"] == {
        "type": "RandomSampler", "num": 512, "pos_fraction": 1.0, "neg_pos_ub": -1, "add_gt_as_proposals": False,
    }  # fmt: skip


@pytest.mark.parametrize(("given", "sampler"), [(64, (64, 1.0)), (None, (512, 0.25))])
def test_the_rois_of_a_two_stage_detector_are_a_setting(given, sampler):
    options = {"pretrain.rois_per_image": given, "model.backbone.init_cfg": None, "model.backbone.depth": 18}
    options["model.neck.in_channels"] = [64, 128, 256, 512]
    run = load_run_config(shipped_config("faster_rcnn"), {}, options)
    used = build_pretrainer(run.stock_model, run.pretrain).student.roi_head.bbox_sampler
    assert (used.num, used.pos_fraction) == sampler


def test_a_sampler_that_needs_class_scores_cannot_be_kept():
    run = load_run_config(shipped_config("faster_rcnn"), {}, {"pretrain.rois_per_image": None})
    run.stock_model["train_cfg"]["rcnn"]["sampler"]["type"] = "ScoreHLRSampler"
    with pytest.raises(AlignDetError, match=r"PISA's sampler .* set pretrain\.rois_per_image"):
        build_pretrainer(run.stock_model, run.pretrain)


def test_rois_of_a_detector_without_such_a_head_are_refused():
    with pytest.raises(AlignDetError, match="rois_per_image is for detectors with one RoI head"):
        load_run_config(shipped_config("fcos"), {}, {"pretrain.rois_per_image": 64})


def test_a_stock_config_gets_its_familys_defaults(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n")
    run = load_run_config(path, {"seed": 3}, {"model.backbone.depth": 18})
    assert run.pretrain.optimizer["lr"] == 0.02
    assert run.pretrain.seed == 3
    assert run.stock_model["backbone"]["depth"] == 18


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("epoch=3", "pretrain.epoch: Unexpected keyword argument"),
        ("views=dict(shortside=3)", "pretrain.views.shortside: Unexpected keyword argument"),
        ("views=dict(short_sides=192)", "pretrain.views.short_sides: "),
        ("views=dict(color_ops=['swirl'])", "pretrain.views.color_ops.0: "),
        ("milestones=[8, 11]", "pretrain.milestones.0: Input should be less than 1"),
        ("proposals_per_image=-5", "pretrain.proposals_per_image: "),
        ("batch_size='abc'", "pretrain.batch_size: "),
        ("seed=-1", "pretrain.seed: "),
        (
            "views=dict(posterize_bits=(4, 4))",
            "pretrain.views.posterize_bits: Value error, the range is half-open",
        ),
        (
            "optimizer=dict(type='AdamW')",
            "pretrain.optimizer: Value error, an optimizer needs its type and lr",
        ),
        ("optimizer=dict(lr='fast')", "pretrain.optimizer: Value error, an optimizer needs its type and lr"),
    ],
)
def test_wrong_settings_name_file_key_and_value(tmp_path, setting, complaint):
    path = tmp_path / "typo.py"
    path.write_text(f"_base_ = '{STOCK_FCOS}'\npretrain = dict({setting})\n")
    with pytest.raises(AlignDetError) as caught:
        load_run_config(path, {}, {})
    assert "typo.py" in str(caught.value)
    assert complaint in str(caught.value)
    assert "known keys of pretrain: epochs, iterations" in str(caught.value)


def test_one_key_of_the_optimizer_changes_one_key(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(f"_base_ = '{STOCK_FCOS}'\npretrain = dict(optimizer=dict(lr=0.5))\n")
    optimizer = load_run_config(path, {}, {}).pretrain.optimizer
    assert optimizer == {"type": "SGD", "lr": 0.5, "momentum": 0.9, "weight_decay": 1e-4}
    path.write_text(path.read_text().replace("dict(lr=0.5)", "dict(_delete_=True, type='AdamW', lr=0.5)"))
    assert load_run_config(path, {}, {}).pretrain.optimizer == {"type": "AdamW", "lr": 0.5}


def test_an_optimizer_of_another_type_takes_nothing_from_the_familys():
    run = load_run_config(shipped_config("mask_rcnn_swin_b"), {}, {})
    assert run.pretrain.optimizer == {
        "type": "AdamW",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "weight_decay": 0.05,
    }
    assert run.pretrain.warmup_steps == 1000
    assert run.stock_model["backbone"]["embed_dims"] == 128
    assert run.stock_model["roi_head"]["bbox_head"]["type"] == "Shared4Conv1FCBBoxHead"


def test_simmims_swin_has_its_own_rate_and_batch_and_otherwise_swin_bs_recipe():
    run, plain = (
        load_run_config(shipped_config(name), {}, {})
        for name in ("mask_rcnn_swin_b_simmim", "mask_rcnn_swin_b")
    )
    changed = {"optimizer": {**plain.pretrain.optimizer, "lr": 6e-5}, "batch_size": 4, "base_batch_size": 32}
    assert run.pretrain == replace(plain.pretrain, **changed)
    weights = run.stock_model["backbone"].pop("init_cfg")["checkpoint"]
    assert weights == "pretrain/simmim/simmim_800e_official.pth"
    assert plain.stock_model["backbone"].pop("init_cfg")["type"] == "Pretrained"
    assert run.stock_model == plain.stock_model


def test_normalisation_beside_the_model_counts_and_none_is_refused(tmp_path):
    stock = load_run_config(shipped_config("fcos"), {}, {}).stock_model
    bare = {name: value for name, value in stock.items() if name != "data_preprocessor"}
    path = tmp_path / "beside.py"
    path.write_text(
        f"model = {bare!r}\ndata_preprocessor = dict(type='DetDataPreprocessor', mean=[1, 2, 3])\n"
    )
    assert load_run_config(path, {}, {}).stock_model["data_preprocessor"]["mean"] == [1, 2, 3]
    path.write_text(f"model = {bare!r}\n")
    with pytest.raises(AlignDetError, match="no `data_preprocessor`"):
        load_run_config(path, {}, {})


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("temperature", r"temperature.*: pretrain\.temperature\?"),
        ("pretrian.epochs", "has no pretrian, and nothing would read it"),
        ("unknown.foo", "has no unknown"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(option, meant):
    with pytest.raises(AlignDetError, match=meant):
        load_run_config(shipped_config("fcos"), {}, {option: 1})


@pytest.mark.parametrize(
    ("option", "ours"),
    [
        ("optim_wrapper.optimizer.lr", "use pretrain.optimizer"),
        ("optim_wrapper.accumulative_counts", "it reads model, pretrain and data_preprocessor alone"),
        ("train_dataloader.batch_size", "use pretrain.batch_size"),
        ("load_from", "use --backbone-weights"),
        ("sync_bn", "it reads model, pretrain and data_preprocessor alone"),
    ],
)
def test_an_option_of_mmengines_runner_is_refused_where_it_does_not_train(option, ours):
    with pytest.raises(AlignDetError, match=f"{option}: `aligndet pretrain` does not read it: {ours}"):
        load_run_config(shipped_config("fcos"), {}, {option: 1})
    read_config(shipped_config("fcos"), {option: 1})


@pytest.mark.parametrize(
    ("base", "own", "named"),
    [
        ("retinanet/retinanet_r50_fpn_1x_coco", "", True),
        ("yolox/yolox_s_8xb8-300e_coco", "", False),
        ("scratch/mask-rcnn_r50-scratch_fpn_gn-all_6x_coco", "", False),
        ("retinanet/retinanet_r50_fpn_1x_coco", "model = dict(backbone=dict(init_cfg=None))", False),
        (
            "yolox/yolox_s_8xb8-300e_coco",
            "model = dict(init_cfg=dict(type='Pretrained', checkpoint='x'))",
            True,
        ),
        (
            "yolox/yolox_s_8xb8-300e_coco",
            "model = dict(backbone=dict(init_cfg=[dict(type='Kaiming', layer='Conv2d'),"
            "dict(type='Pretrained', checkpoint='x')]))",
            True,
        ),
    ],
)
def test_a_backbone_that_stays_random_is_told_from_one_that_names_weights(base, own, named, tmp_path):
    (tmp_path / "mine.py").write_text(f"_base_ = 'mmdet::{base}.py'\n{own}\n")
    assert names_weights(load_run_config(tmp_path / "mine.py", {}, {}).stock_model) == named


def test_every_shipped_detector_names_weights():
    for name in available_detectors():
        assert names_weights(load_run_config(shipped_config(name), {}, {}).stock_model), name


def test_an_option_that_mmengines_runner_reads_is_taken():
    read = re.findall(r"self\.cfg\.get\(\s*'(\w+)'", inspect.getsource(runner))
    assert {"find_unused_parameters", "sync_bn"} <= set(read)
    for option in read:
        read_config(shipped_config("fcos"), {option: None})


def test_missing_files_and_names():
    with pytest.raises(AlignDetError, match=r"shipped: .*fcos"):
        shipped_config("fcoss")


def test_options_are_literals_or_text():
    assert parse_options(["a.b=None", "c=1e-3", "d=[1, 2]", "e=path/to=x", "f=false", "g=none"]) == {
        "a.b": None,
        "c": 1e-3,
        "d": [1, 2],
        "e": "path/to=x",
        "f": False,
        "g": None,
    }
    with pytest.raises(AlignDetError, match="key=value"):
        parse_options(["novalue"])


def test_a_shipped_name_is_no_way_to_a_file(tmp_path):
    (tmp_path / "theirs.py").write_text("model = dict()")
    with pytest.raises(AlignDetError, match="no detector named"):
        shipped_config(str(tmp_path / "theirs"))
