"""What verbs print: JSON and nothing else where that was asked for, and no more of a run than its volume."""

import json

import pytest

from tests.cli.conftest import TINY

READERS = {
    "stats DATASET": {"images", "proposals"},
    "status DATASET": {"state"},
    "verify DATASET": {"problems"},
    "recall DATASET --gt ANNOTATIONS": {"AR", "MABO"},
    "detectors": {"shipped", "trials", "versions"},
    "export CHECKPOINT OUT.pth": {"loaded", "left_at_init", "unexpected", "out"},
    "backbone inspect OUT.pth": {"family", "fits_detectors", "left"},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "model"


@pytest.mark.parametrize(("line", "keys"), READERS.items(), ids=READERS)
def test_json_is_all_that_is_printed(line, keys, run_here, mined_dataset, annotations, checkpoint, out):
    things = {
        "DATASET": mined_dataset,
        "ANNOTATIONS": annotations,
        "CHECKPOINT": checkpoint,
        "OUT.pth": f"{out}.pth",
    }
    code, said = run_here(*(things.get(word, word) for word in line.split()), "--json")
    assert code == 0
    assert keys <= json.loads(said).keys()


@pytest.fixture
def finetune(annotations, photos, tmp_path):
    config = ("--config", TINY, "--image-size", "128x96", "--workers", 0, "--work-dir", tmp_path / "F")
    labels = ("--train", annotations, "--train-images", photos, "--val", annotations, "--val-images", photos)
    return ("finetune", *config, *labels, "--epochs", 1, "--batch-size", 4)


def test_finetune_prints_progress_and_its_log_goes_to_a_file(
    finetune, run_here, annotations, photos, tmp_path
):
    code, said = run_here(*finetune)
    assert code == 0
    assert "step 2 of 2" in said
    assert "mmengine" not in said
    (log,) = (tmp_path / "F").glob("*/*.log")
    assert str(log) in said
    assert "mmengine - INFO" in log.read_text()
    weights = ("--weights", tmp_path / "F" / "epoch_1.pth", "--work-dir", tmp_path / "E")
    config = ("--config", TINY, "--image-size", "128x96", "--workers", 0)
    labels = ("--val", annotations, "--val-images", photos)
    code, said = run_here("evaluate", *config, *labels, *weights, "--json")
    assert code == 0
    assert "AP50" in json.loads(said)


@pytest.mark.parametrize(
    ("flag", "noisy"), [("--quiet", False), pytest.param("--verbose", True, marks=pytest.mark.slow)]
)
def test_a_run_is_as_loud_as_it_was_asked_to_be(flag, noisy, finetune, run_here):
    code, said = run_here(*finetune, flag)
    assert code == 0
    assert ("mmengine - INFO" in said) == noisy
    assert noisy or said == ""


def test_a_quiet_pretraining_writes_its_checkpoint_and_prints_nothing(run_here, mined_dataset, tmp_path):
    arguments = (
        "--config",
        TINY,
        "--data",
        mined_dataset,
        "--work-dir",
        tmp_path,
        "--iterations",
        1,
        "--workers",
        0,
    )
    code, said = run_here("pretrain", *arguments, "--quiet")
    assert (code, said) == (0, "")
    assert (tmp_path / "last.pth").is_file()
