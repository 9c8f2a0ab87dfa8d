"""Mutated files: a value or an AlignDetError. `python -m tests.attacks.fuzz` does the same for longer."""

import os

import pytest

from tests.attacks.fuzz import available, fuzz, with_hypothesis
from tests.attacks.fuzz_targets import TARGETS, prepare


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_mutations_of_sound_files(name, tmp_path):
    prepare(TARGETS[name], tmp_path)
    run = with_hypothesis(name, tmp_path, examples=20)
    assert run.crash == "", run.input


@pytest.mark.slow
@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutations(name, engine):
    run = fuzz(name, engine, int(os.environ.get("ALIGNDET_FUZZ_SECONDS", "30")))
    assert run.crash == "", run.input
    assert run.runs
