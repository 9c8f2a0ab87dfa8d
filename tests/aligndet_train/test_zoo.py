"""The table of what was tried, and the verb that prints it."""

import subprocess
import sys
from pathlib import Path

from aligndet_train.config import available_detectors
from aligndet_train.detectors import ADAPTERS
from aligndet_train.detectors.unsupported import REASONS
from aligndet_train.zoo import zoo_table

# What users ask for first, by the folder of their configs.
WANTED = {
    "atss", "cascade_rcnn", "conditional_detr", "dab_detr", "deformable_detr", "detr", "dino", "faster_rcnn", "fcos",
    "gfl", "htc", "mask_rcnn", "paa", "retinanet", "rtmdet", "sparse_rcnn", "tood", "vfnet", "yolox",
}  # fmt: skip


def printed(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("aligndet")), "detectors", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "400"})
    return process.stdout


def test_every_family_that_must_work_was_shown_to():
    passed = {trial.family for trial in zoo_table().trials if trial.passed}
    assert not WANTED - passed


def test_every_trial_names_its_adapter_or_a_reason():
    families = {adapter.family for adapter in ADAPTERS}
    for trial in zoo_table().trials:
        assert trial.passed == (trial.reason is None), trial.config
        assert trial.adapter in families if trial.passed else trial.reason
        assert "/" not in (trial.reason or "")[:1]


def test_the_reasons_are_those_that_the_code_gives():
    for trial in zoo_table().trials:
        _, refused, reason = (trial.reason or "").partition(" cannot be pretrained: ")
        if refused:
            assert reason in {*REASONS.values()} or reason.startswith("no adapter"), trial.config


def test_every_adapter_was_tried():
    tried = {trial.adapter for trial in zoo_table().trials if trial.passed}
    assert {adapter.family for adapter in ADAPTERS} == tried


def test_the_verb_lists_what_ships_what_passed_and_when():
    output = printed()
    assert all(name in output for name in available_detectors())
    assert "htc/htc_r50_fpn_1x_coco" in output
    table = zoo_table()
    assert f"on {table.date} (mmdet {table.versions['mmdet']}, torch" in output


def test_the_verb_says_why_others_are_refused():
    output = printed("--refused")
    assert "boxinst/boxinst_r50_fpn_ms-90k_coco" in output
    assert "proposals have no masks" in output
    assert "fcos/fcos" not in output
