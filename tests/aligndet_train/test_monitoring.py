"""What a run tells about itself: figures of every step, pictures, the batch behind a loss that is not a number."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aligndet_train.config import load_run_config
from aligndet_train.monitoring import NonFiniteLossError
from aligndet_train.run_options import RunOptions
from aligndet_train.training import pretrain
from proposals.dataset import open_dataset
from tests.aligndet_train.conftest import TINY

CONFIGS = TINY["fcos"].parent


@pytest.fixture(scope="module")
def trained(mined_dataset, tmp_path_factory):
    """A folder where FCOS trained four steps, killed after two."""
    work = tmp_path_factory.mktemp("run") / "work"
    run = load_run_config(TINY["fcos"], {"iterations": 4, "clip_grad": 5.0}, {})
    options = {"workers": 0, "log_interval": 1, "picture_interval": 2, "checkpoint_interval": 2}
    pretrain(run, mined_dataset, work, RunOptions(**options))
    lines = (work / "metrics.jsonl").read_text()
    # As a kill at the end of step 3 leaves it: the checkpoint of step 2, a line beyond it, and half a line.
    (work / "last.pth").unlink()
    (work / "previous.pth").rename(work / "last.pth")
    cut = lines.splitlines(keepends=True)
    (work / "metrics.jsonl").write_text("".join(cut[:3]) + cut[3][:20])
    pretrain(run, mined_dataset, work, RunOptions(**options))
    return work, [json.loads(line) for line in lines.splitlines()]


def test_every_step_is_one_line_also_when_the_run_was_killed(trained):
    work, unbroken = trained
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    wanted = {
        "retrieval",
        "alignment",
        "uniformity",
        "above_floor",
        "positives_per_image",
        "data_wait_share",
    }
    assert wanted | {"loss", "loss_bbox", "grad_norm", "lr", "images_per_second"} <= set(lines[-1])
    assert all(0 <= line["data_wait_share"] <= 1 for line in lines)
    for mine, theirs in zip(lines, unbroken, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["positives_per_image"] == mine["positives"] / 2


def test_tensorboard_has_the_same_figures(trained):
    work, _ = trained
    events = EventAccumulator(str(work / "tensorboard")).Reload()
    last = json.loads((work / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("loss", "retrieval", "data_wait_share"):
        # Killed and resumed after step 2.
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4]
        assert events.Scalars(name)[-1].value == pytest.approx(last[name], rel=1e-5)


def test_pictures_are_drawn_every_so_many_steps(trained):
    work, _ = trained
    assert [path.name for path in sorted((work / "pictures").iterdir())] == [
        "step_000002.jpg",
        "step_000004.jpg",
    ]
    assert Image.open(work / "pictures" / "step_000002.jpg").width > 200


@pytest.mark.parametrize("name", ["detr", "dino"])
def test_positives_per_image_are_of_one_decoder_layer(mined_dataset, tmp_path, name):
    run = load_run_config(CONFIGS / f"tiny_{name}.py", {"iterations": 1}, {})
    layers, images = run.stock_model["decoder"]["num_layers"], run.pretrain.batch_size
    assert layers > 1
    pretrain(run, mined_dataset, tmp_path, RunOptions(workers=0, log_interval=1))
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["positives_per_image"] == pytest.approx(line["positives"] / layers / images)
    # A layer matches every proposal to one query.
    assert 0 < line["positives_per_image"] <= run.pretrain.proposals_per_image


def test_weights_that_are_not_finite_are_not_saved(mined_dataset, tmp_path):
    """The loss of the only step is finite, its update is not."""
    settings = {
        "iterations": 1,
        "warmup_steps": 0,
        "optimizer": {"lr": 3e38},
        "regression_weight": 1e6,
        "clip_grad": None,
    }
    run = load_run_config(TINY["fcos"], settings, {})
    with pytest.raises(NonFiniteLossError, match=r"weights that are not finite.*Lower the learning rate"):
        pretrain(run, mined_dataset, tmp_path, RunOptions(workers=0, checkpoint_interval=1))
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("interval", [1, 1000])
def test_a_loss_that_is_not_a_number_stops_the_run_with_its_batch(interval, mined_dataset, tmp_path):
    settings = {"iterations": 50, "warmup_steps": 0, "optimizer": {"lr": 1e25}}
    run = load_run_config(TINY["fcos"], settings, {})
    with pytest.raises(
        NonFiniteLossError, match=r"step \d+: .* is (nan|inf).*Lower the learning rate"
    ) as stopped:
        pretrain(run, mined_dataset, tmp_path, RunOptions(workers=0, checkpoint_interval=interval))
    assert ("there is no checkpoint yet" in str(stopped.value)) != (tmp_path / "last.pth").exists()
    (path,) = (tmp_path / "nonfinite").glob("*.safetensors")
    facts = json.loads(path.with_suffix(".json").read_text())
    assert str(path) in str(stopped.value)
    assert not math.isfinite(float(facts["figures"]["loss"]))
    tensors, dataset = load_file(path), open_dataset(mined_dataset)
    for place, image in enumerate(facts["images"]):
        record = dataset[image["index"]]
        assert record.key == image["key"]
        assert image["key"] in str(stopped.value)
        assert np.array_equal(tensors[f"boxes_{place}"].numpy(), record.boxes)
        assert tensors[f"image_{place}"].shape[1:] == (record.height, record.width)
    if (tmp_path / "last.pth").exists():
        weights = torch.load(tmp_path / "last.pth", weights_only=True)
        assert weights["step"] < facts["step"]
