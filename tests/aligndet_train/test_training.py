"""Whole runs through the command line: real processes, killed and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from aligndet_train.box_domain import build_detector
from aligndet_train.checkpoint import LAST, PREVIOUS, load_checkpoint
from aligndet_train.config import load_run_config
from aligndet_train.plan import run_identity
from aligndet_train.run_options import RunOptions
from aligndet_train.schedules import warmup_multistep
from aligndet_train.stream.order import EpochOrder
from proposals.cli import main
from proposals.dataset import open_dataset
from proposals.dataset.consolidated import consolidate
from tests.aligndet_train.conftest import TINY
from tests.aligndet_train.forked import Command, finish, wait_for
from tests.damage import flip_a_bit

ITERATIONS = 40
ALIGNDET = Path(sys.executable).with_name("aligndet")


def command(data: Path, work_dir: Path, *extra: str, detector: str = "fcos") -> list[str]:
    return [
        *("pretrain", "--config", str(TINY[detector]), "--data", str(data)),
        *("--work-dir", str(work_dir), "--iterations", str(ITERATIONS), "--log-interval", "1"),
        *("--checkpoint-interval", "10", "--workers", "1", *extra),
    ]


@pytest.fixture
def printed(monkeypatch, capfd):
    """``printed(arguments, expect=1)``: what a command that builds no detector prints, run in this process."""

    def run(arguments: list[str], expect: int = 1) -> str:
        monkeypatch.setattr(sys, "argv", ["aligndet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        streams = capfd.readouterr()
        assert ended.value.code == expect, streams
        assert "Traceback" not in streams.out + streams.err
        return streams.out + streams.err

    return run


def losses(work_dir: Path) -> dict[int, dict[str, float]]:
    """Every logged step of every run in the folder; a step logged twice must be the same both times."""
    by_step: dict[int, dict[str, float]] = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            values = {k: v for k, v in record.items() if k.startswith("loss") or k in {"retrieval", "lr"}}
            assert by_step.setdefault(record["step"], values) == values
    return by_step


@pytest.fixture(scope="module")
def undisturbed(mined_dataset, tmp_path_factory):
    """(work folder, what was printed) of the installed command in a fresh interpreter."""
    work_dir = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(
        [ALIGNDET, *command(mined_dataset, work_dir)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return work_dir, done.stdout + done.stderr


def test_a_killed_run_resumes_to_the_same_losses(undisturbed, mined_dataset, tmp_path):
    process = Command(command(mined_dataset, tmp_path))
    wait_for(tmp_path / PREVIOUS, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stopped = load_checkpoint(tmp_path / LAST)["step"]
    assert 20 <= stopped < ITERATIONS, "killed too late to show anything"
    output = finish(Command(command(mined_dataset, tmp_path)))
    assert f"resumed at step {stopped}" in output
    expected = losses(undisturbed[0])
    assert sorted(expected) == list(range(1, ITERATIONS + 1))
    assert losses(tmp_path) == expected
    first, second = (load_checkpoint(folder / LAST) for folder in (undisturbed[0], tmp_path))
    # Where a longer run would go on: counted from the first start, not from the last.
    assert first["stream"] == second["stream"]
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())


def test_the_log_opens_with_what_is_about_to_run(undisturbed):
    output = undisturbed[1]
    assert re.search(r"tiny_fcos: FCOS, [\d,]+ trainable parameters, [\d,]+ frozen in the backbone", output)
    assert "8 images" in output
    assert "0.01 (0.08 scaled by 2/16 images)" in output
    assert "retrieval" in output


def test_the_logged_learning_rate_is_the_schedules(undisturbed):
    expected = warmup_multistep(
        ITERATIONS, warmup=2, warmup_ratio=1e-3, milestones=(8 / 12, 11 / 12), gamma=0.1
    )
    logged = losses(undisturbed[0])
    assert [logged[step + 1]["lr"] for step in range(ITERATIONS)] == pytest.approx(list(0.01 * expected))


def with_children(process: Command) -> list[int]:
    """Its process id, and those of what it started, which a terminal signals as well."""
    started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [*map(int, started), process.pid]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupt_saves_the_step_it_ends_in_and_resumes(undisturbed, mined_dataset, tmp_path, number):
    arguments = command(mined_dataset, tmp_path)
    arguments[arguments.index("--checkpoint-interval") + 1] = "1000"
    process = Command(arguments)
    while not any(tmp_path.glob("*/vis_data/scalars.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    for each in with_children(process):
        os.kill(each, number)
    if number == signal.SIGHUP:
        time.sleep(0.01)
        process.send_signal(number)
    output, _ = process.communicate()
    stopped = load_checkpoint(tmp_path / LAST)["step"]
    assert process.returncode == 130
    assert 0 < stopped < ITERATIONS
    assert f"stopped at step {stopped} of {ITERATIONS}" in output
    assert "Traceback" not in output
    if number == signal.SIGTERM:
        finish(Command(arguments))
        assert losses(tmp_path) == losses(undisturbed[0])


def test_a_run_that_meets_a_damaged_shard_keeps_the_steps_before(mined_dataset, tmp_path):
    data = shutil.copytree(mined_dataset, tmp_path / "dataset")
    sizes = open_dataset(data).shard_sizes.tolist()
    last = EpochOrder(sizes, seed=0, epoch=0, window=1).window_shards(len(sizes) - 1)[0]
    flip_a_bit(data / "shards" / f"{last:05d}.tar")
    by_shards = ("--cache", str(tmp_path / "cache"), "--cfg-options", "pretrain.shard_window=1")
    arguments = command(data, tmp_path / "W", *by_shards, "--checkpoint-interval", "1000")
    output = finish(Command(arguments), expect=1)
    assert f"{last:05d}.tar has not the bytes" in output
    done = len((tmp_path / "W" / "metrics.jsonl").read_text().splitlines())
    assert done > 0
    assert load_checkpoint(tmp_path / "W" / LAST)["step"] == done
    shutil.copy(mined_dataset / "shards" / f"{last:05d}.tar", data / "shards")
    assert f"resumed at step {done}" in finish(Command([*arguments, "--iterations", str(ITERATIONS)]))


def test_a_finished_run_is_left_alone(undisturbed, mined_dataset, printed):
    work_dir, _ = undisturbed
    results = [path for path in work_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in results}
    output = printed(command(mined_dataset, work_dir), expect=0)
    assert f"is complete already, {ITERATIONS} steps" in output
    assert {path: path.stat().st_mtime_ns for path in results} == before


def test_another_run_in_the_same_folder_is_refused_with_the_difference(undisturbed, mined_dataset, printed):
    assert "pretrain.seed: 0 -> 9" in printed(command(mined_dataset, undisturbed[0], "--seed", "9"))


def test_teacher_is_the_moving_average_of_the_student_in_a_real_run(mined_dataset, tmp_path):
    arguments = command(mined_dataset, tmp_path, "--cfg-options", "pretrain.momentum_end=0.97")
    arguments[arguments.index("--iterations") + 1] = "4"
    arguments[arguments.index("--checkpoint-interval") + 1] = "1"
    finish(Command(arguments))
    last, previous = (load_checkpoint(tmp_path / name) for name in (LAST, PREVIOUS))
    assert (last["step"], previous["step"]) == (4, 3)
    teacher = [name for name in last["model"] if name.startswith("teacher.")]
    assert not any(name.startswith("teacher.backbone.") for name in teacher)
    for name in teacher:
        student = last["model"][name.replace("teacher.", "student.", 1)]
        expected = 0.97 * previous["model"][name] + 0.03 * student
        assert torch.allclose(last["model"][name], expected, atol=1e-6)
    assert any(not torch.equal(last["model"][name], previous["model"][name]) for name in teacher)


@pytest.mark.slow
def test_amp_runs_in_bfloat16_on_the_cpu_too(mined_dataset, tmp_path):
    arguments = command(mined_dataset, tmp_path, "--amp", detector="faster_rcnn")
    arguments[arguments.index("--iterations") + 1] = "3"
    finish(Command(arguments))
    half = losses(tmp_path)
    finish(Command([word for word in arguments if word != "--amp"] + ["--no-resume"]))
    files = sorted(tmp_path.glob("*/vis_data/scalars.json"))
    full = json.loads(files[-1].read_text().splitlines()[0])
    assert len(half) == 3
    assert half[1]["loss"] == pytest.approx(full["loss"], rel=0.05)
    assert half[1]["loss"] != full["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "fcos", "--config", "x.py"], "give either --detector NAME or --config FILE"),
        (["--detector", "nope"], "no detector named 'nope'; shipped: "),
        (["--config", "nowhere.py"], "no config file at nowhere.py"),
        (["--detector", "fcos", "--launcher", "pytorch"], "RANK is not set"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, mined_dataset, tmp_path, printed):
    base = ["pretrain", "--data", str(mined_dataset), "--work-dir", str(tmp_path)]
    assert message in " ".join(printed([*base, *arguments]).split())


@pytest.mark.parametrize("verb", ["pretrain", "pretrain-backbone"])
def test_torchruns_processes_do_not_run_beside_each_other(
    verb, mined_dataset, tmp_path, printed, monkeypatch
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    detector = ["--config", str(TINY["fcos"])] if verb == "pretrain" else []
    said = printed([verb, *detector, "--data", str(mined_dataset), "--work-dir", str(tmp_path / "W")])
    assert "torchrun started 2 processes" in said
    assert "add --launcher pytorch" in said
    assert not (tmp_path / "W").exists()


def test_weights_that_only_mmengines_runner_would_load_are_not_passed_over_in_silence(
    mined_dataset, tmp_path
):
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = {str(TINY['fcos'])!r}\nload_from = 'of_coco.pth'\n")
    arguments = command(mined_dataset, tmp_path / "W", "--iterations", "1")
    arguments[arguments.index("--config") + 1] = str(config)
    assert "load_from (of_coco.pth) is not read" in finish(Command(arguments))


def test_backbone_weights_that_cannot_be_read_say_what_to_do(mined_dataset, tmp_path):
    arguments = command(
        mined_dataset, tmp_path, "--cfg-options", "model.backbone.init_cfg.checkpoint=gone.pth"
    )
    arguments[arguments.index("--config") : arguments.index("--data")] = ["--detector", "fcos"]
    output = finish(Command(arguments), expect=1)
    assert "--backbone-weights FILE" in output
    assert "Traceback" not in output


def test_consolidating_the_dataset_makes_no_other_run(mined_dataset, tmp_path):
    data = tmp_path / "dataset"
    shutil.copytree(mined_dataset, data)
    run = load_run_config(TINY["fcos"], {}, {})
    before = run_identity(run, open_dataset(data), 10, RunOptions())
    assert consolidate(data)
    assert run_identity(run, open_dataset(data), 10, RunOptions()) == before


def test_a_second_run_in_a_work_folder_is_refused_until_the_first_is_gone(mined_dataset, tmp_path):
    first = Command(command(mined_dataset, tmp_path, "--workers", "2"))
    wait_for(tmp_path / LAST, first)
    refused = finish(Command(command(mined_dataset, tmp_path)), expect=1)
    assert "another run is at work in" in refused
    assert re.search(r"process \d+ on ", refused)
    first.kill()
    first.communicate()
    before = load_checkpoint(tmp_path / LAST)["step"]
    assert f"resumed at step {before}" in finish(Command(command(mined_dataset, tmp_path)))


def tiny_backbone(**more: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """What a file with weights of tiny_fcos' backbone holds, and ``more`` tensors."""
    run = load_run_config(TINY["fcos"], {}, {})
    return {"state_dict": build_detector(run.stock_model).backbone.state_dict() | more}


def test_a_run_goes_on_without_the_file_that_its_backbone_began_from(mined_dataset, tmp_path):
    started = tmp_path / "backbone.pth"
    begin = (
        "--cfg-options",
        f"model.backbone.init_cfg={{'_delete_': True, 'type': 'Pretrained', 'checkpoint': '{started}'}}",
    )
    torch.save(tiny_backbone(), started)
    first = Command(command(mined_dataset, tmp_path / "W", *begin))
    wait_for(tmp_path / "W" / LAST, first)
    first.kill()
    first.communicate()
    started.unlink()
    assert "resumed at step" in finish(Command(command(mined_dataset, tmp_path / "W", *begin)))


def test_a_run_goes_on_without_the_file_of_its_backbone_weights(mined_dataset, tmp_path):
    started, other = tmp_path / "backbone.pth", tmp_path / "other.pth"
    torch.save(tiny_backbone(), started)
    arguments = command(mined_dataset, tmp_path / "W", "--backbone-weights", str(started))
    first = Command(arguments)
    wait_for(tmp_path / "W" / LAST, first)
    first.kill()
    first.communicate()
    started.unlink()
    unknown = [str(other) if word == str(started) else word for word in arguments]
    assert f"no weights at '{other}'" in finish(Command(unknown), expect=1)
    assert f"no weights at '{started}'" in finish(Command([*arguments, "--no-resume"]), expect=1)
    other_norm = finish(Command([*arguments, "--cfg-options", "model.backbone.norm_eval=False"]), expect=1)
    assert "stock_model.backbone.norm_eval: True -> False" in other_norm
    output = finish(Command(arguments))
    assert "is gone" in output
    assert "resumed at step" in output


@pytest.mark.parametrize("several", [False, True])
def test_a_run_knows_its_backbones_file_by_its_content(several, mined_dataset, tmp_path):
    def run(started, expect=0):
        from_file = f"'type': 'Pretrained', 'checkpoint': '{started}'"
        both = f"[{{'type': 'Kaiming', 'layer': 'Conv2d'}}, {{{from_file}}}]"
        alone = f"{{'_delete_': True, {from_file}}}"
        begin = f"model.backbone.init_cfg={both if several else alone}"
        arguments = command(mined_dataset, tmp_path / "W", "--iterations", "2", "--cfg-options", begin)
        return finish(Command(arguments), expect=expect)

    first, moved = tmp_path / "backbone.pth", tmp_path / "elsewhere.pth"
    torch.save(tiny_backbone(), first)
    run(first)
    shutil.copy(first, moved)
    assert "is complete already" in run(moved)
    torch.save(tiny_backbone(of_another_training=torch.ones(1)), first)
    option = "init_cfg.1.checkpoint" if several else "init_cfg.checkpoint"
    assert f"initial_weights.{option}: " in run(first, expect=1)
    first.unlink()
    assert "is complete already" in run(moved)


@pytest.mark.parametrize("name", [LAST, PREVIOUS])
def test_an_export_does_not_take_the_place_of_a_checkpoint(tmp_path, printed, name):
    for file in (LAST, PREVIOUS):
        (tmp_path / file).write_bytes(b"ten steps")
    said = printed(["export", str(tmp_path / LAST), str(tmp_path / name)])
    assert "choose another name" in said
    assert (tmp_path / name).read_bytes() == b"ten steps"
