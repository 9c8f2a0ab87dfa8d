"""What fine-tuning makes of stock configs of every build: pipelines in pipelines, several schedulers, many heads."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config

from aligndet_train.config import read_config
from aligndet_train.finetuning.labels import Labels, read_labels
from aligndet_train.finetuning.recipe import FinetuneOptions, evaluation_config, finetune_config
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


def test_images_are_resized_inside_a_choice_of_pipelines(labels):
    config = recipe(stock("detr/detr_r50_8xb2-150e_coco"), labels, image_size=(96, 64))
    assert max(first_sample(config)["inputs"].shape[1:]) <= 96


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


def test_one_scheduler_needs_no_list(labels):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco")
    config.param_scheduler = config.param_scheduler[-1]
    (scheduler,) = recipe(config, labels, epochs=24).param_scheduler
    assert scheduler.milestones == [16, 22]


def test_box_heads_get_the_classes_and_pixel_heads_keep_theirs(labels):
    options = {"model.roi_head.mask_head": None}
    model = recipe(stock("htc/htc_r50_fpn_1x_coco", **options), labels).model.roi_head
    assert [head.num_classes for head in model.bbox_head] == [2, 2, 2]
    assert model.semantic_head.num_classes == 183


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


def test_a_config_that_counts_iterations_can_be_evaluated(labels, tmp_path):
    config = stock("faster_rcnn/faster-rcnn_r50-caffe_fpn_90k_coco")
    made = evaluation_config(config, labels, tmp_path, FinetuneOptions())
    assert made.test_evaluator["ann_file"] == str(labels.annotations)
    assert made.train_cfg is None


def test_figures_count_boxes_as_pycocotools_does(labels):
    config = recipe(stock("retinanet/retinanet_r50_fpn_1x_coco"), labels, labels)
    assert tuple(config.val_evaluator["proposal_nums"]) == (1, 10, 100)
