"""The recipe's identity."""

import pytest
from pydantic import ValidationError

from proposals.errors import AlignDetError
from proposals.recipe import Recipe


def test_every_field_changes_the_fingerprint():
    changes = [
        {"mode": "quality"},
        {"max_side": 500},
        {"filter": "none"},
        {"seed": 1},
        {"max_pixels": 1000},
    ]
    prints = {Recipe(**change).fingerprint() for change in [{}, *changes]}
    assert len(prints) == len(changes) + 1


def test_the_same_filter_spelt_otherwise_is_the_same_recipe():
    assert Recipe(filter="ratio3.0size0008@.5").fingerprint() == Recipe().fingerprint()


def test_json_round_trip():
    recipe = Recipe(mode="single", seed=9)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_diff_names_the_fields():
    assert Recipe().diff(Recipe(max_side=640, seed=2)) == {"max_side": (512, 640), "seed": (0, 2)}
    assert Recipe().diff(Recipe()) == {}


@pytest.mark.parametrize("wrong", [{"mode": "slow"}, {"max_side": 1}, {"seed": -1}, {"engine": "fast"}])
def test_what_is_no_recipe_is_refused(wrong):
    with pytest.raises(ValidationError):
        Recipe(**wrong)


def test_a_wrong_filter_is_a_users_error():
    with pytest.raises(AlignDetError, match=r"'ratio' is no filter name"):
        Recipe(filter="ratio")


def test_seeds_depend_on_the_image_and_on_the_recipe():
    seeds = {Recipe(seed=s).image_seed(digest) for s in (0, 1) for digest in ("aa", "bb")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
