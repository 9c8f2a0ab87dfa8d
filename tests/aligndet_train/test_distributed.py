"""Two real processes (gloo, CPU) against one with the same global batch; processes that die under torchrun."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aligndet_train.box_domain import build_pretrainer
from aligndet_train.checkpoint import LAST, PREVIOUS, load_checkpoint
from aligndet_train.config import load_run_config
from aligndet_train.distributed import gpu_of_process
from aligndet_train.rank_counts import normalised_by_all_ranks, roi_box_losses
from aligndet_train.resumable import require_one_dataset, require_one_start
from aligndet_train.stream import ProposalStream, StepSampler, StreamState
from proposals.dataset import open_dataset
from proposals.dataset.consolidated import consolidate
from proposals.errors import AlignDetError
from proposals.recipe import Recipe
from tests.aligndet_train.conftest import TINY
from tests.aligndet_train.detectors_zoo import tiny_run
from tests.aligndet_train.forked import Command, finish, finish_all, wait_for
from tests.aligndet_train.ranks import free_port, in_two_ranks, said_by_ranks

CONFIGS = TINY["fcos"].parent
STEPS = 20
# One canvas: a batch is padded to its largest image, and padding is seen by group normalisation.
ONE_CANVAS = {
    "pretrain.views.short_sides": (96, 128),
    "pretrain.views.long_side": 128,
    "model.data_preprocessor.pad_size_divisor": 128,
    # Which boxes are drawn when there are too many is a rank's own affair.
    "pretrain.sampled_boxes": None,
}


def command(
    data: Path, work_dir: Path, detector: str, ranks: int, *extra: str, steps: int = STEPS
) -> list[str]:
    """Arguments of a verb with two images a step over ``ranks`` processes; all boxes enter the loss."""
    options = [f"{name}={value}".replace(" ", "") for name, value in ONE_CANVAS.items()]
    return [
        *("pretrain", "--config", str(CONFIGS / f"tiny_{detector}.py"), "--data", str(data)),
        *("--work-dir", str(work_dir), "--iterations", str(steps), "--batch-size", str(2 // ranks)),
        *("--log-interval", "1", "--checkpoint-interval", "5", "--workers", "1"),
        *[word for option in options for word in ("--cfg-options", option)],
        *extra,
    ]


def under_torchrun(arguments: list[str]) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "proposals", *arguments, "--launcher", "pytorch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def child_ranks(torchrun) -> dict[int, int]:
    """{rank: process id} of the workers that torchrun started, once they run."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            environment = dict(
                item.split("=", 1) for item in (entry / "environ").read_text().split("\0") if "=" in item
            )
        except OSError:
            continue
        if int(stat[1]) == torchrun.pid and "LOCAL_RANK" in environment:
            found[int(environment["RANK"])] = int(entry.name)
    return found


def logged(work_dir: Path) -> dict[int, dict[str, float]]:
    """Every step's figures; of a step that was repeated after a kill, the repetition's."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {record["step"]: record for record in records}


def assert_equal_losses(found, expected):
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    for step, values in expected.items():
        names = {name for name in values if name.startswith("loss")}
        assert {"loss", "loss_contrastive", "loss_bbox"} <= names
        for name in names:
            assert found[step][name] == pytest.approx(values[name], abs=1e-5), (step, name)


@pytest.fixture(scope="module")
def one_rank(mined_dataset, tmp_path_factory):
    """Losses of an undisturbed single process, by detector."""

    def run(detector):
        if detector not in done:
            work_dir = tmp_path_factory.mktemp(detector)
            finish(Command(command(mined_dataset, work_dir, detector, 1)))
            done[detector] = logged(work_dir)
        return done[detector]

    done = {}
    return run


def test_every_process_has_a_gpu_of_its_own():
    assert [gpu_of_process(place, 4, "pytorch") for place in range(4)] == [0, 1, 2, 3]
    assert [gpu_of_process(place, 4, "slurm") for place in range(4)] == [0, 1, 2, 3]
    # --gpus-per-task=1: each task sees its own GPU alone, as number 0.
    assert [gpu_of_process(place, 1, "slurm") for place in range(4)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("launcher", "visible", "fewer"),
    [
        ("pytorch", 1, "--nproc-per-node 1"),
        ("pytorch", 4, "--nproc-per-node 4"),
        ("slurm", 4, "--ntasks-per-node 4"),
    ],
)
def test_more_processes_than_gpus_are_refused(launcher, visible, fewer):
    with pytest.raises(AlignDetError, match=rf"sees {visible}.*{fewer}.*CUDA_VISIBLE_DEVICES"):
        gpu_of_process(visible, visible, launcher)


@pytest.mark.parametrize("detector", ["fcos", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_two_ranks_that_share_negatives_compute_the_losses_of_one(
    detector, one_rank, mined_dataset, tmp_path
):
    finish_all(in_two_ranks(command(mined_dataset, tmp_path, detector, 2, "--gather-negatives")))
    assert_equal_losses(logged(tmp_path), one_rank(detector))


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["fcos", "detr"])
def test_ranks_do_not_wait_for_each_other_over_a_picture(detector, mined_dataset, tmp_path):
    """Their losses average counts over the ranks. Every third step: ranks ask each other for a stop every fourth."""
    finish_all(
        in_two_ranks(command(mined_dataset, tmp_path, detector, 2, "--picture-interval", "3", steps=7))
    )
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "step_000003.jpg",
        "step_000006.jpg",
    ]


# Sums over its boxes that each rank has, and how many boxes.
BOX_LOSSES = [([6.0, 30.0], [3, 9]), ([0.0, 30.0], [0, 9]), ([0.0, 0.0], [0, 0])]


def divide_box_losses(rank: int, cases: list[tuple[list[float], list[int]]]) -> None:
    for sums, counts in cases:
        stock = {
            "loss_bbox": torch.tensor(sums[rank] / max(counts[rank], 1)),
            "loss_rpn_cls": torch.tensor(5.0),
        }
        losses = normalised_by_all_ranks(stock, {"loss_bbox": 0}, [counts[rank]], torch.device("cpu"))
        # DDP takes the mean over ranks: it must be the whole batch's.
        torch.distributed.all_reduce(total := losses["loss_bbox"].clone())
        assert total.item() / 2 == pytest.approx(sum(sums) / max(sum(counts), 1))
        assert losses["loss_rpn_cls"] == 5


def test_box_losses_of_roi_heads_are_divided_by_all_ranks_boxes(tmp_path):
    assert said_by_ranks(divide_box_losses, [BOX_LOSSES] * 2, tmp_path) == [None, None]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("mask_rcnn", {"loss_bbox": 0}),
        ("cascade_rcnn", {"s0.loss_bbox": 0, "s1.loss_bbox": 1, "s2.loss_bbox": 2}),
        ("sabl_faster_rcnn", {}),
        ("retinanet", {}),
    ],
)
def test_losses_divided_by_a_roi_heads_boxes_are_known_by_name_and_stage(family, expected, samples):
    run = tiny_run(family)
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    assert roi_box_losses(model.student) == expected
    inputs, targets = model.data_preprocessor(samples(0), True)["views"][0]
    assert set(expected) <= set(model.student.loss(inputs, targets))


def go_on(rank: int, start: int) -> None:
    require_one_start(Path("W"), start)


def test_ranks_that_see_other_checkpoints_refuse_to_go_on(tmp_path):
    said = said_by_ranks(go_on, [5, 0], tmp_path)
    assert all(error.startswith("the ranks do not see the same checkpoint") for error in said)


def open_here(rank: int, root: Path) -> None:
    require_one_dataset(open_dataset(root))


def test_ranks_that_see_other_datasets_refuse_to_begin(mined_dataset, photos, mine_folder, tmp_path):
    other = mine_folder(photos, tmp_path / "other", Recipe(seed=1))
    said = said_by_ranks(open_here, [mined_dataset, other], tmp_path)
    assert all(error.startswith("the ranks do not see the same dataset at") for error in said)


def test_ranks_with_copies_of_one_dataset_begin(mined_dataset, tmp_path):
    copy = shutil.copytree(mined_dataset, tmp_path / "copy")
    consolidate(copy)
    assert said_by_ranks(open_here, [mined_dataset, copy], tmp_path) == [None, None]


def test_ranks_that_see_one_checkpoint_go_on(tmp_path):
    assert said_by_ranks(go_on, [5, 5], tmp_path) == [None, None]


@pytest.mark.slow
def test_without_sharing_each_rank_contrasts_its_own_images_as_in_the_release(
    one_rank, mined_dataset, tmp_path
):
    finish_all(in_two_ranks(command(mined_dataset, tmp_path, "fcos", 2, steps=1)))
    first, single = logged(tmp_path)[1], one_rank("fcos")[1]
    # The detector's own losses are normalised over all ranks either way.
    for name in ("loss_bbox", "loss_centerness"):
        assert first[name] == pytest.approx(single[name], abs=1e-5)
    run = load_run_config(TINY["fcos"], {"batch_size": 1}, ONE_CANVAS)
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    dataset = open_dataset(mined_dataset)
    stream = ProposalStream(dataset)
    alone = []
    for positions in StepSampler(dataset.shard_sizes, start=StreamState(0, 0, 0), batch_size=1, steps=2):
        batch = model.data_preprocessor([stream[position] for position in positions])
        alone.append(model(**batch)["loss_contrastive"].item())
    assert first["loss_contrastive"] == pytest.approx(sum(alone) / 2, abs=1e-5)
    assert abs(first["loss_contrastive"] - single["loss_contrastive"]) > 0.1


@pytest.mark.slow
def test_a_rank_killed_ends_the_job_with_a_reason_and_one_rank_goes_on(one_rank, mined_dataset, tmp_path):
    process = under_torchrun(command(mined_dataset, tmp_path, "fcos", 2, "--gather-negatives"))
    wait_for(tmp_path / PREVIOUS, process)
    os.kill(child_ranks(process)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "rank 0 of 2 lost another rank, whose process or node died" in " ".join(output.split())
    assert "the same command goes on from there" in " ".join(output.split())
    stopped = load_checkpoint(tmp_path / LAST)["step"]
    assert 10 <= stopped < STEPS, "killed too late to show anything"
    resumed = finish(Command(command(mined_dataset, tmp_path, "fcos", 1, "--gather-negatives")))
    assert f"resumed at step {stopped}" in resumed
    assert_equal_losses(logged(tmp_path), one_rank("fcos"))


@pytest.mark.slow
def test_a_stop_request_to_one_rank_stops_all_after_the_same_step(one_rank, mined_dataset, tmp_path):
    arguments = command(mined_dataset, tmp_path, "fcos", 2, "--gather-negatives")
    process = under_torchrun(arguments)
    wait_for(tmp_path / LAST, process)
    os.kill(child_ranks(process)[1], signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    stopped = {int(step) for step in re.findall(r"stopped at step (\d+) of 20", output)}
    assert len(stopped) == 1
    assert load_checkpoint(tmp_path / LAST)["step"] in stopped
    finish(under_torchrun(arguments))
    assert_equal_losses(logged(tmp_path), one_rank("fcos"))


@pytest.mark.slow
def test_slurm_tasks_join_by_the_variables_slurm_sets(one_rank, mined_dataset, tmp_path):
    arguments = command(
        mined_dataset, tmp_path, "fcos", 2, "--gather-negatives", "--launcher", "slurm", steps=2
    )
    job = {"SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    finish_all([Command(arguments, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"])
    # The schedule of a run of two steps is another one; the first loss comes before any update.
    assert logged(tmp_path)[1]["loss"] == pytest.approx(one_rank("fcos")[1]["loss"], abs=1e-5)
