"""What fine-tuning makes of stock configs of every build: pipelines in pipelines, several schedulers, many heads."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.datasets.transforms import Resize
from mmdet.registry import DATASETS, PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR

from aligndet_train.config import read_config
from aligndet_train.finetuning.labels import Labels, read_labels
from aligndet_train.finetuning.recipe import FinetuneOptions, Rates, evaluation_config, finetune_config
from aligndet_train.unread_options import require_read
from proposals.errors import AlignDetError
from tests.aligndet_train.finetuning.test_labels import coco


@pytest.fixture(scope="module")
def labels(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """One photograph with a box of each of two classes."""
    path = tmp_path_factory.mktemp("labels") / "train.json"
    path.write_text(json.dumps(coco([(3, "a"), (7, "b")])))
    return read_labels(path, photos, path.parent)


def stock(config: str, **options: Any) -> Config:
    spec = find_spec("mmdet")
    assert spec is not None
    assert spec.origin is not None
    return read_config(Path(spec.origin).parent / ".mim" / "configs" / f"{config}.py", options)


def recipe(config: Config, labels: Labels, val: Labels | None = None, **options: Any) -> Config:
    made, _ = finetune_config(
        config, labels, val, Path("F"), FinetuneOptions(**options, workers=0), pretrained=True
    )
    return made


def first_sample(config: Config) -> Any:
    dataset = DATASETS.build({**config.train_dataloader.dataset, "_scope_": "mmdet"})
    dataset.full_init()
    return dataset[0]


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_rate_grows_with_the_images_of_all_ranks(labels, ranks):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    made, rates = finetune_config(
        config, labels, None, Path("F"), FinetuneOptions(batch_size=4), pretrained=True, world_size=ranks
    )
    assert rates.lr == made.optim_wrapper.optimizer.lr == pytest.approx(0.01 * 4 * ranks / 16 * 1.5)
    assert made.optim_wrapper.optimizer.weight_decay == pytest.approx(0.0001 / 2)


def rates_of(config: Config, labels: Labels) -> Rates:
    return finetune_config(config, labels, None, Path("F"), FinetuneOptions(batch_size=8), pretrained=False)[
        1
    ]


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("rtmdet/rtmdet_tiny_8xb32-300e_coco", 256, "8xb32 in rtmdet_tiny_8xb32-300e_coco.py"),
        ("retinanet/retinanet_r18_fpn_1xb8-1x_coco", 8, "auto_scale_lr says 16"),
        ("yolox/yolox_tiny_8xb8-300e_coco", 64, None),
        ("retinanet/retinanet_r50_fpn_1x_coco", 16, None),
    ],
)
def test_a_rate_is_for_the_images_a_step_that_the_file_is_named_for(name, images, said, labels):
    config = stock(name)
    found = rates_of(config, labels)
    assert found.lr == pytest.approx(config.optim_wrapper.optimizer.lr * 8 / images)
    assert f"x 8/{images} images" in found.reason
    assert said in found.reason if said else "auto_scale_lr" not in found.reason


@pytest.mark.parametrize(
    ("own", "images"),
    [
        ("", 256),
        ("auto_scale_lr = dict(base_batch_size=32)", 32),
        ("optim_wrapper = dict(optimizer=dict(lr=0.001))\nauto_scale_lr = dict(base_batch_size=8)", 8),
    ],
)
def test_a_config_of_ones_own_takes_the_batch_of_the_nearest_file_that_says_one(
    own, images, labels, tmp_path
):
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'\n{own}\n")
    assert f"x 8/{images} images" in rates_of(read_config(path, {}), labels).reason


def test_the_floor_of_a_schedule_moves_with_the_rate(labels):
    config = stock("rtmdet/rtmdet_tiny_8xb32-300e_coco")
    made = recipe(config, labels, batch_size=8)
    cosine = next(s for s in made.param_scheduler if "eta_min" in s)
    assert cosine.eta_min == pytest.approx(0.05 * made.optim_wrapper.optimizer.lr)
    assert next(s for s in config.param_scheduler if "eta_min" in s).eta_min == pytest.approx(0.05 * 0.004)


def last_rate(config: Config, steps: int) -> float:
    """The rate of the last of ``steps`` steps of one epoch, as mmengine's schedulers leave it."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build({**s, "_scope_": "mmdet"}, default_args={"optimizer": optimizer})
        for s in config.param_scheduler
    ]
    for _ in range(steps - 1):
        optimizer.step()
        for scheduler in (s for s in schedulers if not s.by_epoch):
            scheduler.step()
    return float(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("epochs", [1, 19, 20, 40])
def test_a_short_run_reaches_its_rate(epochs, labels):
    made = recipe(stock("retinanet/retinanet_r50_fpn_1x_coco"), labels, epochs=epochs)
    # One image: an epoch is a step. No milestone is looked at.
    assert last_rate(made, epochs) == pytest.approx(1.0)


def many(labels: Labels, path: Path, *changes: dict[str, Any] | None) -> Labels:
    """The photograph as one image for each change of it, with boxes, and for each None, without."""
    content = json.loads(labels.annotations.read_text())
    image, boxes = content["images"][0], content["annotations"]
    content["images"] = [{**image, "id": i, **(change or {})} for i, change in enumerate(changes)]
    content["annotations"] = [
        {**box, "id": 2 * i + place + 1, "image_id": i}
        for i, change in enumerate(changes)
        if change is not None
        for place, box in enumerate(boxes)
    ]
    path.write_text(json.dumps(content))
    return read_labels(path, labels.images, path.parent)


def test_a_warm_up_counts_no_image_that_is_left_out(labels, tmp_path):
    few = many(labels, tmp_path / "few.json", *[None] * 294, *[{"width": 31}] * 10, *[{}] * 16)
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    made, rates = finetune_config(
        config, few, None, Path("F"), FinetuneOptions(epochs=12, batch_size=16), pretrained=False
    )
    assert last_rate(made, 12) == pytest.approx(1.0)
    assert rates.left_out is not None
    assert "304 of 320 images: 294 without a box, 10 with a side below 32 px" in rates.left_out
    config.train_dataloader.dataset.filter_cfg = None
    whole, rates = finetune_config(
        config, few, None, Path("F"), FinetuneOptions(epochs=12, batch_size=16), pretrained=False
    )
    assert whole.param_scheduler[0].end == 24, "of 240 steps"
    assert rates.left_out is None


def test_images_below_the_configs_min_size_are_the_reason(labels, tmp_path):
    small = many(labels, tmp_path / "small.json", {"height": 31}, {"height": 31}, None)
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    with pytest.raises(
        AlignDetError, match=r"of 4 boxes 4 are in images with a side below 32 px.*min_size"
    ) as said:
        recipe(config, small)
    assert "small.json" in str(said.value)
    assert recipe(config, labels, small).val_dataloader.dataset.test_mode, "all images are measured"
    config.train_dataloader.dataset.filter_cfg.min_size = 31
    assert recipe(config, small).train_dataloader.dataset.filter_cfg.min_size == 31


@pytest.mark.parametrize(
    "phase",
    [
        {"type": "CosineAnnealingLR", "begin": 500, "end": 87960, "T_max": 87460},
        {"type": "PolyLR", "begin": 0, "end": 87960, "eta_min": 0},
        {"type": "mmengine.optim.MultiStepLR", "milestones": [58640, 80630]},
        {"type": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "begin": 0, "end": 87960},
        {"type": "LinearLR", "start_factor": 0.1, "begin": 500, "end": 600},
    ],
)
def test_a_schedule_in_steps_of_other_images_is_refused_and_no_warm_up(phase, labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    warm_up = config.param_scheduler[0]
    assert not warm_up.by_epoch
    config.param_scheduler = [warm_up, {**phase, "by_epoch": False}]
    with pytest.raises(AlignDetError, match=r"counts steps.*convert_to_iter_based=True"):
        recipe(config, labels)


def test_a_warm_up_of_epochs_that_would_not_end_is_left_out(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    warm_up = {"type": "LinearLR", "start_factor": 0.1, "by_epoch": True, "begin": 0, "end": 5}
    config.param_scheduler = [warm_up, config.param_scheduler[-1]]
    assert [s.type for s in recipe(config, labels, epochs=3).param_scheduler] == ["MultiStepLR"]
    assert recipe(config, labels, epochs=12).param_scheduler[0].end == 5


def test_images_are_repeated_as_the_config_repeats_them(labels):
    config = stock("retinanet/retinanet_r50_fpn_ms-640-800-3x_coco")
    made = recipe(config, labels, image_size=(96, 64), epochs=20, batch_size=1)
    dataset = DATASETS.build({**made.train_dataloader.dataset, "_scope_": "mmdet"})
    assert len(dataset) == 3
    assert max(dataset[2]["inputs"].shape[1:]) <= 96
    assert made.param_scheduler[0].end == 20 * 3 // 10, "a tenth of the steps"
    inner = made.train_dataloader.dataset.dataset
    assert inner.filter_cfg == config.train_dataloader.dataset.dataset.filter_cfg


def test_rare_classes_stay_oversampled_and_figures_are_of_every_image_once(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset = {"type": "ClassBalancedDataset", "oversample_thr": 4.0, "dataset": loader.dataset}
    made = recipe(config, labels, labels)
    dataset = DATASETS.build({**made.train_dataloader.dataset, "_scope_": "mmdet"})
    assert len(dataset) == 2  # of one image: each class is in all of them, sqrt(4 / 1)
    assert made.val_dataloader.dataset.type == "CocoDataset"


def test_images_are_resized_inside_a_choice_of_pipelines(labels):
    config = recipe(stock("detr/detr_r50_8xb2-150e_coco"), labels, image_size=(96, 64))
    assert max(first_sample(config)["inputs"].shape[1:]) <= 96


@pytest.mark.parametrize("named", ["mmdet.Resize", "mmdet.datasets.transforms.Resize", Resize])
def test_images_are_resized_however_a_config_names_the_transform(named, labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    for step in config.train_dataloader.dataset.pipeline:
        if step["type"] == "Resize":
            step["type"] = named
    assert max(first_sample(recipe(config, labels, image_size=(96, 64)))["inputs"].shape[1:]) <= 96


def test_mosaics_reach_the_model(labels):
    config = recipe(stock("yolox/yolox_tiny_8xb8-300e_coco"), labels)
    boxes = first_sample(config)["data_samples"].gt_instances
    assert set(boxes.labels.tolist()) <= {0, 1}


def phases(config: Config) -> list[tuple[str, int, int]]:
    return [(s.type.removeprefix("mmdet."), s.get("begin", 0), s.end) for s in config.param_scheduler]


def test_phases_of_a_schedule_keep_their_share(labels):
    yolox = stock("yolox/yolox_tiny_8xb8-300e_coco")
    usual = [("QuadraticWarmupLR", 0, 5), ("CosineAnnealingLR", 5, 285), ("ConstantLR", 285, 300)]
    assert phases(recipe(yolox, labels)) == usual
    halved = recipe(yolox, labels, epochs=150)
    assert [end for _, _, end in phases(halved)] == [2, 142, 150]
    assert next(hook.num_last_epochs for hook in halved.custom_hooks if "num_last_epochs" in hook) == 8
    assert phases(recipe(yolox, labels, epochs=3)) == [
        ("QuadraticWarmupLR", 0, 1),
        ("CosineAnnealingLR", 0, 3),
    ]
    rtmdet = recipe(stock("rtmdet/rtmdet_tiny_8xb32-300e_coco"), labels, epochs=30)
    assert next(hook.switch_epoch for hook in rtmdet.custom_hooks if "switch_epoch" in hook) == 28


@pytest.mark.parametrize("epochs", [2, 3, 4, 5, 7, 9, 11])
def test_a_cosine_falls_to_its_floor_and_stays_there(epochs, labels):
    made = recipe(stock("rtmdet/rtmdet_tiny_8xb32-300e_coco"), labels, epochs=epochs)
    (cosine,) = (phase for phase in made.param_scheduler if phase["type"] == "CosineAnnealingLR")
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=made.optim_wrapper.optimizer.lr)
    optimizer.param_groups[0]["initial_lr"] = made.optim_wrapper.optimizer.lr
    length = 20
    settings = {
        name: value for name, value in cosine.items() if name not in ("type", "convert_to_iter_based")
    }
    scheduler = CosineAnnealingLR.build_iter_from_epoch(optimizer=optimizer, epoch_length=length, **settings)
    seen = []
    for _ in range(epochs * length):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] * 0.06 + cosine["eta_min"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 8, 12])
def test_a_short_run_ends_without_mosaics(epochs, labels):
    rtmdet = recipe(stock("rtmdet/rtmdet_tiny_8xb32-300e_coco"), labels, epochs=epochs)
    switch = next(hook.switch_epoch for hook in rtmdet.custom_hooks if "switch_epoch" in hook)
    assert any(epoch >= switch for epoch in range(epochs))
    yolox = recipe(stock("yolox/yolox_tiny_8xb8-300e_coco"), labels, epochs=epochs)
    last = next(hook.num_last_epochs for hook in yolox.custom_hooks if "num_last_epochs" in hook)
    assert any(epoch + 1 == epochs - last for epoch in range(epochs))


def rates_by_epoch(config: Config) -> list[float]:
    """Of every epoch, as mmengine's schedulers leave it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (scheduler,) = (
        PARAM_SCHEDULERS.build({**s, "_scope_": "mmdet"}, default_args={"optimizer": optimizer})
        for s in config.param_scheduler
    )
    rates = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(config.train_cfg.max_epochs - 1):
        optimizer.step()
        scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "StepLR", "step_size": 4, "gamma": 0.5},
        {"type": "ExponentialLR", "gamma": 0.5},
        {"type": "CosineRestartLR", "periods": [4, 8], "restart_weights": [1, 0.5], "eta_min": 0.0},
        {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "begin": 0, "end": 12},
        {"type": "MultiStepLR", "milestones": [8, 11], "gamma": 0.1},
    ],
)
def test_a_schedule_of_any_kind_moves_with_the_run(settings, labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    config.param_scheduler = [{**settings, "by_epoch": True}]
    usual = rates_by_epoch(recipe(config, labels))
    assert usual[-1] < usual[0]
    for times in (2, 5):
        longer = rates_by_epoch(recipe(config, labels, epochs=12 * times))
        # A polynomial ends at its floor with the last epoch, whose share of a longer run is smaller.
        assert longer[::times] == pytest.approx(usual, rel=0.15, abs=0.1)
    assert rates_by_epoch(recipe(config, labels, epochs=6))[-1] < 0.6 * usual[0]


def test_a_cycle_ends_with_the_run(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    config.param_scheduler = [
        {"type": "OneCycleLR", "eta_max": 1.0, "total_steps": 12, "by_epoch": True, "pct_start": 0.3}
    ]
    usual = rates_by_epoch(recipe(config, labels))
    for epochs in (6, 24):
        moved = rates_by_epoch(recipe(config, labels, epochs=epochs))
        assert (moved[0], moved[-1]) == pytest.approx((usual[0], usual[-1]))


def test_drops_of_a_phase_that_begins_late_come_before_its_last_epoch(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    config.param_scheduler = [{"type": "MultiStepLR", "milestones": [3, 5], "begin": 6, "end": 12}]
    (moved,) = recipe(config, labels, epochs=6).param_scheduler
    assert (moved.begin, moved.end, moved.milestones) == (3, 6, [2, 2])
    config.param_scheduler = [{"type": "ReduceOnPlateauLR", "monitor": "coco/bbox_mAP", "patience": 10}]
    assert recipe(config, labels, epochs=2).param_scheduler[0].patience == 2


def test_drops_behind_a_configs_own_end_stay_there(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco", **{"train_cfg.max_epochs": 6})
    assert recipe(config, labels).param_scheduler[-1].milestones == [8, 11]
    assert recipe(config, labels, epochs=12).param_scheduler[-1].milestones == []


def test_a_detector_that_stretches_its_images_goes_on_to(labels):
    made = recipe(stock("ssd/ssd300_coco"), labels, labels, image_size=(320, 240))
    assert tuple(first_sample(made)["inputs"].shape) == (3, 240, 320)
    assert resized(made.val_dataloader.dataset).keep_ratio is False


def resized(dataset: Any) -> Any:
    return next(step for step in dataset.pipeline if step["type"].endswith("Resize"))


def test_a_size_is_refused_where_images_are_measured_as_large_as_they_are(labels):
    config = stock("centernet/centernet_r18_8xb16-crop512-140e_coco")
    with pytest.raises(AlignDetError, match=r"centernet_r18.* tests images as large as they are"):
        recipe(config, labels, labels, image_size=(128, 96))
    recipe(config, labels, labels)


def test_a_box_head_that_predicts_masks_is_refused(labels):
    with pytest.raises(AlignDetError, match=r"box-only sibling$"):
        recipe(stock("rtmdet/rtmdet-ins_tiny_8xb32-300e_coco"), labels)


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("randomness.seed", "use --seed"),
        ("train_dataloader.num_workers", "use --workers"),
        ("train_dataloader.dataset.dataset.ann_file", "use --train and --train-images"),
        ("val_dataloader.dataset.data_prefix.img", "use --val and --val-images"),
        ("train_cfg.val_interval", "use --eval-interval"),
        ("train_dataloader.dataset.indices", "use --train and --train-images"),
        ("train_pipeline.1.prob", "name the dataset's"),
        ("val_evaluator.metric", "AP of boxes"),
        ("pretrain.epochs", "of `aligndet pretrain`"),
        ("model.roi_head.bbox_head.0.num_classes", "the labels have the classes"),
        ("resume", "goes on"),
    ],
)
def test_an_option_that_a_run_would_overwrite_is_refused(option, instead):
    with pytest.raises(AlignDetError, match=f"{re.escape(option)}.*finetune.*{instead}"):
        require_read(dict.fromkeys(["model.bbox_head.norm_on_bbox", option]), "finetune")


@pytest.mark.parametrize(
    "options",
    [{"model.bbox_head": {"num_classes": 3}}, {"model": {"roi_head": {"bbox_head": {"num_classes": 3}}}}],
)
def test_an_option_that_a_run_would_overwrite_is_refused_inside_of_a_dictionary(options):
    with pytest.raises(AlignDetError, match=r"bbox_head\.num_classes.* the labels have the classes"):
        require_read(options, "finetune")


@pytest.mark.parametrize("option", ["val_evaluator.metric", "test_dataloader.batch_size", "pretrain.epochs"])
def test_what_evaluation_would_overwrite_is_refused_and_what_a_run_was_trained_with_is_not(option):
    with pytest.raises(AlignDetError, match=f"{option}.*evaluate"):
        require_read(
            dict.fromkeys(["optim_wrapper.clip_grad", "randomness.seed", "train_cfg.max_epochs", option]),
            "evaluate",
        )


def test_options_that_a_run_reads_pass():
    options = ["randomness.deterministic", "train_dataloader.batch_size", "train_dataloader.dataset.pipeline",
               "train_dataloader.dataset.filter_cfg.min_size", "train_cfg.max_epochs", "load_from",
               "default_hooks.checkpoint.save_best", "resume_from_nothing", "optim_wrapper.optimizer.lr",
               "model.rpn_head.num_classes"]  # fmt: skip
    require_read(dict.fromkeys(options), "finetune")


def test_one_scheduler_needs_no_list(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    config.param_scheduler = config.param_scheduler[-1]
    (scheduler,) = recipe(config, labels, epochs=24).param_scheduler
    assert scheduler.milestones == [16, 22]


def test_a_map_of_classes_is_dropped_like_masks_where_boxes_are_learned(labels, tmp_path):
    options = {"model.roi_head.mask_head": None}
    whole = stock("htc/htc_r50_fpn_1x_coco", **options)
    with pytest.raises(AlignDetError, match=r"semantic_head=None"):
        recipe(whole, labels)
    # Its boxes are seen with the map's features: one that is only measured keeps it.
    measured, _ = evaluation_config(whole, labels, tmp_path, FinetuneOptions())
    assert measured.model.roi_head.semantic_head.num_classes == 183
    config = recipe(
        stock("htc/htc_r50_fpn_1x_coco", **options, **{"model.roi_head.semantic_head": None}), labels
    )
    assert [head.num_classes for head in config.model.roi_head.bbox_head] == [2, 2, 2]
    assert len(first_sample(config)["data_samples"].gt_instances) == 2


@pytest.mark.parametrize(
    "config",
    [
        "scnet/scnet_r50_fpn_1x_coco",
        "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco",
        "yolact/yolact_r50_1xb8-55e_coco",
    ],
)
def test_a_class_that_needs_its_masks_is_not_told_to_drop_them(config, labels):
    with pytest.raises(AlignDetError, match=r"box-only sibling$"):
        recipe(stock(config), labels)


@pytest.mark.parametrize(
    ("epochs", "drops"), [(24, [16, 22]), (6, [4, 5]), (4, [3, 3]), (3, [2, 2]), (1, [1, 1])]
)
def test_every_drop_of_a_short_schedule_comes_before_its_last_epoch(epochs, drops, labels):
    config = recipe(stock("retinanet/retinanet_r50_fpn_1x_coco"), labels, epochs=epochs)
    assert next(s.milestones for s in config.param_scheduler if "milestones" in s) == drops


def test_a_config_without_the_names_of_its_files_says_so(labels, tmp_path):
    path = tmp_path / "mine.json"
    stock("rtmdet/rtmdet_tiny_8xb32-300e_coco").dump(path)
    assert "give --lr" in rates_of(read_config(path, {}), labels).reason


def test_without_a_mask_branch_no_mask_is_loaded(labels):
    options = {"model.roi_head.mask_head": None}
    config = recipe(stock("mask_rcnn/mask-rcnn_r50_fpn_1x_coco", **options), labels)
    assert len(first_sample(config)["data_samples"].gt_instances) == 2


def test_amp_takes_the_place_of_the_configs_own(labels):
    config = stock("retinanet/retinanet_r50_fpn_amp-1x_coco", **{"optim_wrapper.loss_scale": "dynamic"})
    assert "loss_scale" not in recipe(config, labels, amp=True).optim_wrapper


def test_a_set_of_crowds_is_refused(labels, tmp_path):
    content = json.loads(labels.annotations.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    crowds = read_labels(tmp_path / "crowds.json", labels.images, tmp_path)
    with pytest.raises(AlignDetError, match="no box to learn from"):
        recipe(stock("retinanet/retinanet_r50_fpn_1x_coco"), crowds)


def test_a_set_without_a_usable_box_is_not_measured(labels, tmp_path):
    content = json.loads(labels.annotations.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [number / 1000 for number in annotation["bbox"]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    val = read_labels(tmp_path / "val.json", labels.images, tmp_path)
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    with pytest.raises(AlignDetError, match=r"no box to measure AP on.*normalised"):
        evaluation_config(config, val, tmp_path, FinetuneOptions())
    with pytest.raises(AlignDetError, match=r"no box to measure AP on.*normalised"):
        recipe(config, labels, val)


def test_a_config_of_a_model_alone_says_what_it_lacks(labels, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'\n")
    config = read_config(path, {})
    with pytest.raises(
        AlignDetError, match=r"mine\.py has no train_dataloader.*optim_wrapper.*mmdet::"
    ) as said:
        recipe(config, labels)
    with pytest.raises(AlignDetError, match=r"has no val_dataloader\.dataset:"):
        evaluation_config(config, labels, tmp_path, FinetuneOptions())
    named = re.findall(r"mmdet::[\w/.]+\.py", str(said.value))
    path.write_text(f"_base_ = {['mmdet::_base_/models/retinanet_r50_fpn.py', *named]}\n")
    assert recipe(read_config(path, {}), labels, labels).default_scope == "mmdet"


def test_evaluation_loads_no_weights_of_the_config(labels, tmp_path):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco", load_from="other.pth", resume=True)
    made, _ = evaluation_config(config, labels, tmp_path, FinetuneOptions())
    assert (made.load_from, made.resume) == (None, False)


def test_a_config_that_counts_iterations_can_be_evaluated(labels, tmp_path):
    config = stock("faster_rcnn/faster-rcnn_r50-caffe_fpn_90k_coco")
    made, _ = evaluation_config(config, labels, tmp_path, FinetuneOptions())
    assert made.test_evaluator["ann_file"] == str(labels.annotations)
    assert made.train_cfg is None


def test_figures_count_boxes_as_pycocotools_does(labels):
    config = recipe(stock("retinanet/retinanet_r50_fpn_1x_coco"), labels, labels)
    assert tuple(config.val_evaluator["proposal_nums"]) == (1, 10, 100)


def settings_of(config: Config, *names: str) -> dict[str, Any]:
    """Sizes of the training pipelines, by transform."""
    dataset = config.train_dataloader.dataset
    steps = [*dataset.pipeline, *dataset.get("dataset", {}).get("pipeline", ())]
    return {step["type"]: {name: step[name] for name in names if name in step} for step in steps}


@pytest.mark.parametrize("side", [640, 320])
def test_sizes_that_belong_together_are_scaled_together(labels, side):
    names = ("img_scale", "scale", "crop_size", "size", "ratio_range")
    made = recipe(stock("rtmdet/rtmdet_tiny_8xb32-300e_coco"), labels, labels, image_size=(side, side))
    found = settings_of(made, *names)
    assert found["CachedMosaic"] == {"img_scale": (side, side)}
    assert found["RandomResize"] == {"scale": (2 * side, 2 * side), "ratio_range": (0.5, 2.0)}
    assert found["RandomCrop"] == {"crop_size": (side, side)}
    assert found["Pad"] == {"size": (side, side)}
    assert found["CachedMixUp"] == {"img_scale": (side, side), "ratio_range": (1.0, 1.0)}
    test = {step["type"]: step for step in made.val_dataloader.dataset.pipeline}
    assert (test["Resize"]["scale"], test["Pad"]["size"]) == ((side, side), (side, side))
    assert first_sample(made)["inputs"].shape[1:] == (side, side)
    (switch,) = [hook for hook in made.custom_hooks if "switch_pipeline" in hook]
    assert switch.switch_pipeline[2]["scale"] == (side, side)


def test_batches_of_several_sizes_lie_around_the_one_of_the_test(labels):
    made = recipe(stock("yolox/yolox_tiny_8xb8-300e_coco"), labels, labels, image_size=(208, 208))
    found = settings_of(made, "img_scale", "border", "scale")
    assert found["Mosaic"] == {"img_scale": (320, 320)}
    assert found["RandomAffine"] == {"border": (-160, -160)}
    assert found["Resize"] == {"scale": (320, 320)}
    assert made.model.data_preprocessor.batch_augments[0].random_size_range == (160, 320)
    assert first_sample(made)["inputs"].shape[1:] == (320, 320)


def test_the_canvas_of_the_test_holds_what_is_resized_for_it(labels):
    made = recipe(stock("rtmdet/rtmdet_tiny_8xb32-300e_coco"), labels, labels, image_size=(400, 400))
    test = {step["type"]: step for step in made.val_dataloader.dataset.pipeline}
    assert (test["Resize"]["scale"], test["Pad"]["size"]) == ((400, 400), (416, 416))


def test_what_batches_are_resized_to_is_scaled_too(labels):
    made = recipe(stock("crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman"), labels, image_size=(350, 200))
    assert made.model.data_preprocessor.batch_augments[0].scale == (350, 200)


def test_what_the_config_says_of_seeds_and_checkpoints_stays(labels):
    given = {
        "randomness": {"deterministic": True, "seed": 7},
        "default_hooks.checkpoint.save_best": "auto",
        "default_hooks.checkpoint.max_keep_ckpts": -1,
    }
    made = recipe(stock("retinanet/retinanet_r50_fpn_1x_coco", **given), labels, labels, seed=3)
    assert made.randomness == {"deterministic": True, "seed": 3}
    assert made.default_hooks.checkpoint == {
        "type": "CheckpointHook", "interval": 1, "max_keep_ckpts": -1, "save_best": "auto",
    }  # fmt: skip
    other = stock(
        "retinanet/retinanet_r50_fpn_1x_coco", **{"default_hooks.checkpoint.save_best": "coco/segm_mAP"}
    )
    kept, rates = finetune_config(other, labels, labels, Path("F"), FinetuneOptions(), pretrained=True)
    assert "save_best" not in kept.default_hooks.checkpoint
    assert any("save_best, coco/segm_mAP," in line for line in rates.faults)
    one = stock("retinanet/retinanet_r50_fpn_1x_coco", **{"default_hooks.checkpoint.max_keep_ckpts": 1})
    assert recipe(one, labels).default_hooks.checkpoint.max_keep_ckpts == 2
    assert recipe(stock("retinanet/retinanet_r50_fpn_1x_coco"), labels).randomness == {"seed": 0}


def test_the_rate_is_for_the_images_of_an_update(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco", **{"optim_wrapper.accumulative_counts": 8})
    _, rates = finetune_config(
        config, labels, None, Path("F"), FinetuneOptions(batch_size=2), pretrained=True
    )
    assert rates.lr == pytest.approx(0.01 * 16 / 16 * 1.5)
    assert "16/16 images" in rates.reason


@pytest.mark.parametrize("option", ["optim_wrapper.optimizer.lr", "train_dataloader.batch_size"])
def test_text_in_place_of_a_number_is_named(option, labels):
    with pytest.raises(AlignDetError, match=f"{re.escape(option)} of the config is 'abc', and no number"):
        recipe(stock("retinanet/retinanet_r50_fpn_1x_coco", **{option: "abc"}), labels)
