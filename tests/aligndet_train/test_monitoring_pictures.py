"""Pictures of a step: for every family, of the right boxes, without consequences, and never the end of a run."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from PIL import Image

from aligndet_train.box_domain import build_pretrainer
from aligndet_train.config import load_run_config
from aligndet_train.detectors import BACKGROUND
from aligndet_train.monitoring.pictures import patient_ranks, seen_views, step_picture, succeeded_everywhere
from aligndet_train.monitoring.predicted import watched_boxes
from aligndet_train.run_options import RunOptions
from aligndet_train.training import pretrain
from tests.aligndet_train import detectors_zoo as zoo
from tests.aligndet_train.conftest import TINY
from tests.aligndet_train.ranks import said_by_ranks

CONFIGS = TINY["fcos"].parent
SHIPPED = ("fcos", "faster_rcnn", "detr", "conditional_detr", "dab_detr", "deformable_detr", "dino", "ddq")
ZOO = {**zoo.FAMILIES, **zoo.SLOW}
GA_FASTER = ("guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py", zoo._ROI)
# Said so in docs/training.md.
UNREAD = {"centernet": "CenterNet", "grid_rcnn": "GridRCNN"}
NAMES = [
    *SHIPPED,
    "ga_faster",
    *sorted(zoo.FAMILIES.keys() - UNREAD),
    *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(zoo.SLOW.keys() - UNREAD)),
]
# Their box losses take boxes of which not all are learned by the class branch, or weigh some with zero.
OTHER_BOXES_THAN_ASSIGNED = {"fsaf", "paa", "rtmdet", "yolof"}


def built(name):
    if name in SHIPPED:
        run = load_run_config(CONFIGS / f"tiny_{name}.py", {}, {})
    elif name == "ga_faster":
        options = {f"model.{key}": value for key, value in GA_FASTER[1].items()}
        run = load_run_config(zoo._path("gfl").parents[1] / GA_FASTER[0], zoo.PRETRAIN, options)
    else:
        run = zoo.tiny_run(name)
    return build_pretrainer(run.stock_model, run.pretrain).train()


@pytest.fixture
def sample(samples):
    """A photograph with its 8 best proposals: fewer than any tiny detector has queries."""
    (whole,) = samples(0)
    return dataclasses.replace(whole, boxes=whole.boxes[:8])


def without_proposals(sample):
    return dataclasses.replace(sample, boxes=sample.boxes[:0])


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_the_boxes_of_the_assigned_proposals(name, sample):
    model = built(name)
    (inputs, targets), _ = model.data_preprocessor([sample], True)["views"]
    proposals = targets[0].gt_instances.clone()
    with watched_boxes(model.student, proposals.bboxes, proposals.labels) as watched:
        model.student.loss(inputs, model.adapter.targets(targets))
    readings = [reading for reading in model.adapter.read(model.student) if reading is not None]
    assigned = set(torch.cat([reading.ids for reading in readings]).tolist()) - {BACKGROUND}
    found = set(torch.cat([ids for _, ids in watched.boxes]).tolist())
    assert watched.unread is None
    assert assigned
    # Which proposal a predicted box is of is what the assigner says.
    assert assigned & found if name in OTHER_BOXES_THAN_ASSIGNED else found == assigned
    for view in seen_views(model, sample):
        assert view.predicted
        assert view.unread is None
    # The first image of a batch may have none.
    step_picture(model, without_proposals(sample), most=6)


@pytest.mark.parametrize(
    "name",
    ["foveabox", "fsaf", "gfl", "reppoints", "retinanet", "sabl_retinanet", "tood",
     pytest.param("ssd", marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_boxes_are_those_that_stock_code_predicts(name, samples):
    model = built(name)
    (inputs, targets), _ = model.data_preprocessor(samples(0), True)["views"]
    proposals, metas = targets[0].gt_instances.clone(), [targets[0].metainfo]
    head, features = model.student.bbox_head, model.student.extract_feat(inputs)
    with watched_boxes(model.student, proposals.bboxes, proposals.labels) as watched:
        head.loss_by_feat(*head(features), [proposals.clone()], metas)
    model.adapter.read(model.student)
    caught = torch.cat([boxes for boxes, _ in watched.boxes])
    head.eval()
    everything = ConfigDict(score_thr=-1, nms_pre=10**9)
    (predicted,) = head.predict_by_feat(
        *head(features), batch_img_metas=metas, cfg=everything, rescale=False, with_nms=False
    )
    height, width = metas[0]["img_shape"]
    # Some predict boxes cut to the image, some to its last pixels.
    corner = torch.tensor([width, height, width, height]) - 1
    stock, caught = (boxes.clamp(min=0).minimum(corner) for boxes in (predicted.bboxes.unique(dim=0), caught))
    assert len(caught)
    assert torch.cdist(caught, stock, p=torch.inf).min(dim=1).values.max() < 0.05


@pytest.mark.parametrize("name", sorted(UNREAD))
def test_boxes_that_nothing_reads_are_said_to_be_missing(name, sample):
    model = built(name)
    for view in seen_views(model, sample):
        assert f"reads them from {UNREAD[name]}'s" in view.unread
        assert not view.predicted
    assert step_picture(model, sample, most=6).width > 200


def state_of(model):
    """What a training step can change, weights and all else that DDOD and Dynamic R-CNN keep."""
    lists = {
        f"{name}.{key}": repr(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (list, int, float)) and not isinstance(value, torch.Tensor)
    }
    return lists, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["faster_rcnn", "dynamic_rcnn", "ddod", "rtmdet"])
def test_a_picture_changes_neither_the_model_nor_random_numbers(name, samples):
    model = built(name)
    losses = model(model.data_preprocessor(samples(0, 1), True)["views"])
    model.parse_losses(losses)[0].backward()
    lists, weights = state_of(model)
    torch.manual_seed(5)
    picture = step_picture(model, samples(2)[0], most=6)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    lists_after, weights_after = state_of(model)
    assert lists_after == lists
    assert all(torch.equal(value, weights[key]) for key, value in weights_after.items())
    assert all(p.grad is not None for p in model.student.parameters() if p.requires_grad)
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 500


def gfl_run(**options):
    return load_run_config(
        zoo._path("gfl"),
        {**zoo.PRETRAIN, "iterations": 3, "views": {"short_sides": (96,), "long_side": 128}},
        {**zoo._options("gfl"), **options},
    )


def test_a_detector_whose_boxes_are_distributions_has_pictures_after_its_checkpoints(mined_dataset, tmp_path):
    options = RunOptions(workers=0, picture_interval=3, checkpoint_interval=3)
    pretrain(gfl_run(), mined_dataset, tmp_path, options)
    picture = tmp_path / "pictures" / "step_000003.jpg"
    assert Image.open(picture).width > 200
    assert (tmp_path / "last.pth").stat().st_mtime_ns < picture.stat().st_mtime_ns


def warnings_of(folder: Path) -> list[str]:
    text = "".join(path.read_text() for path in folder.rglob("*.log"))
    return [line for line in text.splitlines() if "WARNING" in line and "pictures of" in line]


def test_a_run_says_once_that_predicted_boxes_are_not_read(mined_dataset, tmp_path):
    run = zoo.tiny_run("grid_rcnn")
    run = dataclasses.replace(run, pretrain=dataclasses.replace(run.pretrain, iterations=2))
    pretrain(run, mined_dataset, tmp_path, RunOptions(workers=0, picture_interval=1))
    (warning,) = warnings_of(tmp_path)
    assert "pictures of GridRCNN lack predicted boxes" in warning
    assert len(list(tmp_path.glob("pictures/*.jpg"))) == 2


def test_pictures_that_cannot_be_computed_are_left_out_and_said_once(mined_dataset, tmp_path):
    """Batch normalisation takes no single value: the last level of two images, but not of a picture's one."""
    run = gfl_run(**{"model.bbox_head.norm_cfg": {"type": "BN", "requires_grad": True}})
    pretrain(run, mined_dataset, tmp_path, RunOptions(workers=0, picture_interval=1, checkpoint_interval=1))
    (warning,) = warnings_of(tmp_path)
    assert "GFL" in warning
    assert "Expected more than 1 value per channel" in warning
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 3
    assert not list(tmp_path.glob("pictures/*"))


def test_pictures_that_cannot_be_written_are_left_out_and_said_once(mined_dataset, tmp_path):
    run = load_run_config(TINY["fcos"], {"iterations": 2}, {})
    (tmp_path / "pictures").write_text("where the folder should be")
    pretrain(run, mined_dataset, tmp_path, RunOptions(workers=0, picture_interval=1))
    (warning,) = warnings_of(tmp_path)
    assert "FCOS are left out where they fail (FileExistsError" in warning


def agree(rank: int, failed: bool) -> None:
    ranks = patient_ranks(timedelta(seconds=3))
    assert not succeeded_everywhere(not failed, ranks)
    assert succeeded_everywhere(True, ranks)
    # Now rank 0 waits, as inside the losses of a step, for rank 1.
    try:
        if failed:
            succeeded_everywhere(False, ranks)
    finally:
        torch.distributed.barrier()


@pytest.mark.slow
def test_ranks_go_on_alike_without_a_picture_unless_one_waits_for_another(tmp_path):
    waited, failed = said_by_ranks(agree, [False, True], tmp_path)
    assert waited is None
    assert failed.startswith("the picture of a step failed on one rank")
