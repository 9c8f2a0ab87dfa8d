"""A half whose code cannot be loaded takes nothing with it but its own verbs."""

import pytest

BROKEN = {"pipeline": "", "pipeline.cli": "import a_library_that_went_away"}


@pytest.mark.parametrize("verb", ["mine", "status", "verify", "regions"])
def test_its_verbs_say_what_is_broken_and_where_to_look(aligndet, verb):
    done = aligndet(verb, "somewhere", shadows=BROKEN)
    assert done.returncode == 4
    assert "a_library_that_went_away" in done.stderr
    assert "aligndet doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_others_go_on_working(aligndet, mined_dataset):
    done = aligndet("stats", mined_dataset, shadows=BROKEN)
    assert done.returncode == 0, done.stderr
    assert "images" in done.stdout
    asked = aligndet("--help", shadows=BROKEN)
    assert asked.returncode == 0
    assert "a_library_that_went_away" in asked.stdout


def test_the_doctor_names_it(aligndet):
    done = aligndet("doctor", shadows=BROKEN, absent=("ray", "torch"))
    assert done.returncode == 4
    assert "verbs of pipeline" in done.stdout
    assert "a_library_that_went_away" in done.stdout


def test_an_unknown_verb_of_a_whole_installation_is_a_usage_error(aligndet):
    done = aligndet("minne")
    assert done.returncode == 2
    assert "minne" in done.stderr
