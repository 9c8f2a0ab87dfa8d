"""The detectors of benchmarks/transfer_configs: pretraining takes each, and its heads' strides are the neck's."""

from pathlib import Path

import pytest
import torch
from transfer_jobs import RECIPES

from aligndet_train.box_domain import build_pretrainer
from aligndet_train.config import load_run_config

CONFIGS = sorted((Path(__file__).parents[2] / "benchmarks" / "transfer_configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_pretraining_takes_a_small_config(path):
    run = load_run_config(path, {}, {})
    student = build_pretrainer(run.stock_model, run.pretrain).student.eval()
    with torch.no_grad():
        levels = student.extract_feat(torch.zeros(1, 3, 256, 256))
    head = student.rpn_head if hasattr(student, "rpn_head") else student.bbox_head
    if hasattr(head, "prior_generator"):
        wanted = [stride for stride, _ in head.prior_generator.strides]
        assert [256 // level.shape[-1] for level in levels] == wanted
    else:
        assert len(levels) == student.num_feature_levels


def test_every_recipe_has_its_config():
    used = {recipe.config for recipe in RECIPES.values()} - {None}
    assert used <= {path.name for path in CONFIGS}
