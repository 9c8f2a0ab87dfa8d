"""Whole runs: killed and resumed, what they leave behind, several ranks, mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from aligndet_train.backbones.ours import read_ours
from aligndet_train.backbones.registry import build_backbone, find_backbone
from aligndet_train.checkpoint import LAST, PREVIOUS, load_checkpoint
from aligndet_train.image_domain import knn
from aligndet_train.image_domain.training import synchronised
from aligndet_train.schedules import half_cosine
from proposals.cli import build_app
from proposals.dataset.consolidated import consolidate
from proposals.errors import AlignDetError
from tests.aligndet_train.forked import Command, wait_for
from tests.aligndet_train.image_domain.conftest import (
    TINY,
    TINY_BACKBONE,
    TINY_MOCO,
    TINY_SIMCLR,
    small_simsiam,
)
from tests.damage import flip_a_bit

STEPS = 40
MOCO = ("--method", "moco_v2")
SIMCLR = ("--method", "simclr")


def arguments(data: Path, work_dir: Path, *extra: str, steps: int = STEPS) -> list[str]:
    tiny, rate = TINY, 0.5
    if MOCO[-1] in extra:
        tiny = TINY_MOCO
    elif SIMCLR[-1] in extra:
        tiny, rate = TINY_SIMCLR, 0.05
    small = {name: value for name, value in tiny.items() if name != "batch_size"} | {"lr": rate}
    settings = [word for name, value in small.items() for word in ("--cfg-options", f"{name}={value}")]
    return [
        *(
            "pretrain-backbone",
            "--backbone",
            str(TINY_BACKBONE),
            "--data",
            str(data),
            "--work-dir",
            str(work_dir),
        ),
        *(
            "--iterations",
            str(steps),
            "--batch-size",
            "6",
            "--log-interval",
            "1",
            "--checkpoint-interval",
            "5",
        ),
        *("--workers", "0", *settings, *extra),
    ]


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), list(words))
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def logged(work_dir: Path) -> dict[int, dict[str, float]]:
    """Every logged step of every run in the folder; a step logged twice must be the same both times."""
    by_step: dict[int, dict[str, float]] = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            names = [name for name in record if name in ("output_std", "lr") or name.startswith("loss_")]
            values = {name: record[name] for name in names}
            assert by_step.setdefault(record["step"], values) == values
    return by_step


@pytest.fixture(scope="module")
def undisturbed(mined_dataset, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("undisturbed")
    code, output = invoke(*arguments(mined_dataset, work_dir))
    assert code == 0, output
    return work_dir


def test_a_loss_that_is_not_a_number_stops_the_run_with_its_batch(mined_dataset, tmp_path):
    code, output = invoke(*arguments(mined_dataset, tmp_path, "--cfg-options", "lr=1e25"))
    assert code != 0
    assert re.search(r"step \d+: .*is (nan|inf).*--cfg-options lr=.*new --work-dir", output, re.DOTALL), (
        output
    )
    (facts,) = (tmp_path / "nonfinite").glob("*.json")
    assert len(json.loads(facts.read_text())["images"]) == 6


def test_a_killed_run_resumes_to_the_same_losses_and_weights(undisturbed, mined_dataset, tmp_path):
    process = Command(arguments(mined_dataset, tmp_path))
    wait_for(tmp_path / PREVIOUS, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stopped = load_checkpoint(tmp_path / LAST)["step"]
    assert 10 <= stopped < STEPS, "killed too late to show anything"
    assert not (tmp_path / "backbone.pth").exists()
    code, output = invoke(*arguments(mined_dataset, tmp_path))
    assert code == 0, output
    assert sorted(logged(undisturbed)) == list(range(1, STEPS + 1))
    assert logged(tmp_path) == logged(undisturbed)
    first, second = (load_checkpoint(folder / LAST)["model"] for folder in (undisturbed, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    files = [torch.load(folder / "backbone.pth", weights_only=True) for folder in (undisturbed, tmp_path)]
    assert files[0]["meta"] == files[1]["meta"]


@pytest.mark.parametrize(("method", "title"), [(MOCO, "MoCo v2: "), (SIMCLR, "SimCLR: ")])
def test_stopped_and_resumed_it_has_the_same_losses_and_weights_queue_and_optimizer_included(
    mined_dataset, tmp_path, method, title
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, output = invoke(*arguments(mined_dataset, whole, *method))
    assert code == 0, output
    process = Command(arguments(mined_dataset, parts, *method))
    wait_for(parts / PREVIOUS, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 10 <= load_checkpoint(parts / LAST)["step"] < STEPS, "killed too late to show anything"
    code, output = invoke(*arguments(mined_dataset, parts, *method))
    assert code == 0, output
    assert sorted(logged(whole)) == list(range(1, STEPS + 1))
    assert logged(parts) == logged(whole)
    first, second = (load_checkpoint(folder / LAST)["model"] for folder in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    state, meta = read_ours(torch.load(whole / "backbone.pth", weights_only=True))
    assert meta["method"] == method[-1]
    assert all(torch.equal(value, first[f"backbone.{name}"]) for name, value in state.items())
    log = read_log(whole)
    assert title in log
    assert ("the queue of 96 keys is longer than the 8 images" in log) == (method is MOCO)
    if method is MOCO:
        assert first["seen"] == STEPS * 6


def test_the_rate_follows_the_cosine_and_the_loss_falls(undisturbed):
    steps = logged(undisturbed)
    rates = [steps[step + 1]["lr"] for step in range(STEPS)]
    assert rates == pytest.approx(list(0.5 * 6 / 256 * half_cosine(1, 0, STEPS)))
    losses = [steps[step + 1]["loss_simsiam"] for step in range(STEPS)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_backbone_pth_is_the_checkpoints_backbone_with_its_inputs(undisturbed):
    checkpoint = torch.load(undisturbed / LAST, weights_only=True)
    state, meta = read_ours(torch.load(undisturbed / "backbone.pth", weights_only=True))
    assert read_ours(checkpoint)[1] == meta
    assert meta["backbone"]["type"] == "ResNet"
    assert (meta["inputs"]["bgr_to_rgb"], meta["inputs"]["std"]) == (False, (1.0, 1.0, 1.0))
    assert meta["step"] == STEPS
    inside = {name: value for name, value in checkpoint["model"].items() if name.startswith("backbone.")}
    assert {f"backbone.{name}" for name in state} == inside.keys()
    assert all(torch.equal(value, inside[f"backbone.{name}"]) for name, value in state.items())


def test_a_finished_run_is_left_alone_and_another_one_refused(undisturbed, mined_dataset):
    results = [path for path in undisturbed.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in results}
    assert invoke(*arguments(mined_dataset, undisturbed))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in results} == before
    code, output = invoke(*arguments(mined_dataset, undisturbed, "--crops", "proposals"))
    assert code != 0
    assert "settings.crops: 'images' -> 'proposals'" in output


def test_the_backbone_of_a_run_before_is_replaced(undisturbed, mined_dataset, tmp_path):
    """As after --no-resume and a kill between last.pth and backbone.pth."""
    shutil.copytree(undisturbed, tmp_path / "W")
    out = tmp_path / "W" / "backbone.pth"
    out.write_bytes(b"of the run before")
    os.utime(out, (0, 0))
    code, output = invoke(*arguments(mined_dataset, tmp_path / "W"))
    assert code == 0, output
    files = [torch.load(path, weights_only=True) for path in (out, undisturbed / "backbone.pth")]
    assert files[0]["meta"] == files[1]["meta"]


def test_a_backbones_checkpoint_is_no_detector_to_export(undisturbed, tmp_path):
    code, output = invoke("export", str(undisturbed / LAST), str(tmp_path / "model.pth"))
    assert code != 0
    assert "it holds no detector" in output


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Class folders of four red and four green pictures."""
    for name, colour in (("red", (0, 0, 200)), ("green", (0, 200, 0))):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        for number in range(4):
            picture = np.full((30, 30, 3), colour, np.uint8) + np.uint8(number)
            cv2.imwrite(str(tmp_path / "labelled" / name / f"{number}.png"), picture)
    return tmp_path / "labelled"


@pytest.mark.parametrize("method", [(), MOCO, SIMCLR])
def test_proposal_crops_amp_and_knn_in_one_run(mined_dataset, labelled, tmp_path, method):
    knn = ("--knn", str(labelled), "--knn-interval", "2")
    words = arguments(mined_dataset, tmp_path / "W", "--crops", "proposals", "--amp", *method, *knn, steps=4)
    code, output = invoke(*words)
    assert code == 0, output
    measured = [json.loads(line) for line in (tmp_path / "W" / "knn.jsonl").read_text().splitlines()]
    assert [record["step"] for record in measured] == [0, 2, 4]
    assert measured[0]["knn_accuracy"] == 1
    # Killed while it measured the end.
    log = tmp_path / "W" / "knn.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    assert invoke(*words)[0] == 0
    assert [json.loads(line) for line in log.read_text().splitlines()] == measured
    # A power cut in the middle of the last line.
    log.write_text(log.read_text()[:-30])
    assert invoke(*words)[0] == 0
    assert [json.loads(line) for line in log.read_text().splitlines()] == measured
    # Other pictures: the end is measured on them, too.
    shutil.copy(labelled / "red" / "0.png", labelled / "green" / "red.png")
    assert invoke(*words)[0] == 0
    *before, last = [json.loads(line) for line in log.read_text().splitlines()]
    assert before == measured
    assert (last["step"], last["knn_accuracy"]) == (4, pytest.approx(8 / 9, abs=1e-4))
    assert last["pictures"] != measured[-1]["pictures"]


def test_pictures_that_are_lost_meanwhile_do_not_end_the_run(mined_dataset, labelled, tmp_path, monkeypatch):
    read, asked = knn._decoded, []

    def lost(path):
        asked.append(path)
        if len(asked) > 8:  # after those of step 0
            raise AlignDetError(f"labelled picture {path} cannot be read")
        return read(path)

    monkeypatch.setattr(knn, "_decoded", lost)
    words = arguments(mined_dataset, tmp_path / "W", "--knn", str(labelled), "--knn-interval", "2", steps=4)
    code, output = invoke(*words)
    assert code == 0, output
    log = "".join(path.read_text() for path in (tmp_path / "W").rglob("*.log"))
    assert "k-NN accuracy is measured on 8 pictures of 2 classes" in log
    assert "k-NN accuracy at step 2 was not measured: labelled picture" in log
    assert [json.loads(line)["step"] for line in (tmp_path / "W" / "knn.jsonl").read_text().splitlines()] == [
        0
    ]


def test_a_run_that_is_asked_to_stop_ends_a_measurement(labelled):
    labelled_crops, (model, _) = knn.read_labelled(labelled, None, 24), small_simsiam()
    with pytest.raises(AlignDetError, match="the run is asked to stop"):
        labelled_crops.features(model, lambda: True)
    assert model.training


def test_a_run_that_is_stopped_does_not_wait_for_knn_and_measures_its_checkpoint_when_it_goes_on(
    mined_dataset, tmp_path
):
    for name in "ab":
        (tmp_path / "labelled" / name).mkdir(parents=True)
        for number in range(2):
            picture = np.full((30, 30, 3), number + ord(name), np.uint8)
            cv2.imwrite(str(tmp_path / "labelled" / name / f"{number}.png"), picture)
    work_dir, log = tmp_path / "W", tmp_path / "W" / "knn.jsonl"
    words = arguments(
        mined_dataset, work_dir, "--knn", str(tmp_path / "labelled"), "--knn-interval", "500", steps=600
    )
    process = Command(words)
    wait_for(work_dir / LAST, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    stopped = load_checkpoint(work_dir / LAST)["step"]
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0]
    with log.open("a") as file:
        file.write('{"step": 599, "knn_accuracy": 0.5, "knn_chance": 0.5}\n')
    process = Command([*words, "--knn-interval", str(stopped)])
    while len(log.read_text().splitlines()) != 2 or '"step": 599' in log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, stopped]


def test_layers_that_normalise_and_activate_keep_doing_both_over_ranks():
    backbone = build_backbone(find_backbone("timm:tf_efficientnet_lite0").config).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = backbone(image)[-1]
    several = synchronised(backbone)
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in several.modules())
    assert torch.equal(several(image)[-1], before)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("interval", ["1", "500"])
def test_the_log_of_a_run_warns_of_a_collapse_and_of_nothing_else(mined_dataset, tmp_path, kept, interval):
    changes = ("lr=20", f"stop_gradient={kept}", "collapse_window=10", "max_side=32")
    words = [word for change in changes for word in ("--cfg-options", change)]
    words += ["--batch-size", "48", "--log-interval", interval]
    code, output = invoke(*arguments(mined_dataset, tmp_path, *words, steps=30))
    assert code == 0, output
    assert ("collapse: the output's deviation is" in read_log(tmp_path)) != kept


# Reads the weights of both ranks when the run ends, and sees that they are one.
_AGREEING = """
import torch, torch.distributed as dist
from mmengine.runner import Runner
from mmengine.hooks import Hook
class Compare(Hook):
    def after_train(self, runner):
        queue = [b for name, b in runner.model.named_buffers() if name.endswith("queue")]
        mine = torch.cat([p.detach().flatten() for p in [*runner.model.parameters(), *queue]])
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine)
        print("ranks agree:", torch.equal(*both), flush=True)
train = Runner.train
def compared(runner):
    runner.register_hook(Compare())
    return train(runner)
Runner.train = compared
from proposals.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", [(), MOCO, SIMCLR])
def test_two_ranks_train_agree_and_share_the_knn(mined_dataset, labelled, tmp_path, method):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "compared.py").write_text(_AGREEING)
    knn = ("--knn", str(labelled), "--knn-interval", "2")
    words = arguments(mined_dataset, tmp_path, "--launcher", "pytorch", *method, *knn, steps=4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, tmp_path / "compared.py", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_checkpoint(tmp_path / LAST)["identity"]["settings"]["global_batch"] == 12
    assert (tmp_path / "backbone.pth").exists()
    assert done.stdout.count("ranks agree: True") == 2
    measured = [json.loads(line) for line in (tmp_path / "knn.jsonl").read_text().splitlines()]
    assert [record["step"] for record in measured] == [0, 2, 4]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "byol"], "no method 'byol': simsiam, moco_v2, simclr"),
        (["--backbone", "resnet51"], "no backbone 'resnet51': give one of resnet18, "),
        (["--backbone", "timm:nothing"], "'nothing'"),
        (["--backbone", "timm:maxvit_tiny_tf_224"], "takes no image of 24 px"),
        (["--cfg-options", "views=3"], "views.size=24 reaches inside views, which is given as 3"),
        (["--backbone", "gone.py"], "no config file at gone.py"),
        (["--method", "moco_v2"], "predictor_dims: Unexpected keyword argument"),
        (["--cfg-options", "stride=2"], "stride: Unexpected keyword argument"),
        (["--crops", "boxes"], "crops: Input should be 'images' or 'proposals'"),
        (["--knn-interval", "5"], "name the pictures with --knn"),
        (["--knn", "gone"], "no labelled pictures at gone"),
        (["--data", "gone"], "gone"),
        (["--launcher", "pytorch"], "RANK is not set"),
    ],
)
def test_mistakes_are_one_sentence(extra, message, mined_dataset, tmp_path):
    result = CliRunner().invoke(build_app(), [*arguments(mined_dataset, tmp_path), *extra])
    assert result.exit_code != 0
    assert type(result.exception).__name__ in ("AlignDetError", "SystemExit")
    assert message in f"{result.output} {result.exception}"


def test_consolidating_the_dataset_makes_no_other_run(mined_dataset, tmp_path):
    data, work_dir = tmp_path / "dataset", tmp_path / "run"
    shutil.copytree(mined_dataset, data)
    assert invoke(*arguments(data, work_dir, steps=2))[0] == 0
    assert consolidate(data)
    code, output = invoke(*arguments(data, work_dir, steps=2))
    assert code == 0, output
    assert "is complete already, 2 steps" in output


def test_a_run_through_a_small_cache_has_the_same_losses(undisturbed, mined_dataset, tmp_path):
    cache = ("--cache", str(tmp_path / "cache"), "--cache-gb", "0.001")
    code, output = invoke(*arguments(mined_dataset, tmp_path / "run", *cache))
    assert code == 0, output
    assert logged(tmp_path / "run") == logged(undisturbed)
    assert list((tmp_path / "cache").rglob("*.tar"))


def test_a_damaged_shard_stops_a_run_or_is_skipped_and_counted(mined_dataset, tmp_path):
    data = shutil.copytree(mined_dataset, tmp_path / "dataset")
    flip_a_bit(data / "shards" / "00001.tar")
    through = ("--cache", str(tmp_path / "cache"), "--damaged")
    code, output = invoke(*arguments(data, tmp_path / "run", *through, "skip", steps=4))
    assert code == 0, output
    assert re.search(
        r"skipped so far: \d+ images, replaced by others of the dataset", read_log(tmp_path / "run")
    )
    code, output = invoke(*arguments(data, tmp_path / "other", *through, "raise", steps=4))
    assert code == 1
    assert "00001.tar has not the bytes" in output
    assert "--damaged skip" in output


def read_log(work_dir: Path) -> str:
    return "".join(file.read_text() for file in work_dir.glob("*/*.log"))


def test_two_runs_of_one_second_and_process_log_into_their_own_folders(mined_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102_030405")
    for name in ("one", "two"):
        code, output = invoke(*arguments(mined_dataset, tmp_path / name, steps=2))
        assert code == 0, output
        assert sorted(logged(tmp_path / name)) == [1, 2]
        assert "SimSiam: " in read_log(tmp_path / name)
