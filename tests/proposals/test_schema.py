"""schema.json: shipped, current, true of real manifests, and not of broken ones."""

import copy
import importlib.resources
import json

import jsonschema
import pytest

from proposals.dataset import layout
from proposals.dataset.schema import manifest_schema

SCHEMA = json.loads(importlib.resources.files("proposals.dataset").joinpath("schema.json").read_text())


@pytest.fixture(scope="module")
def manifest(mined_dataset):
    return json.loads((mined_dataset / layout.MANIFEST).read_text())


def _is_valid(content):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(content)


def test_the_shipped_schema_is_that_of_the_model():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert manifest_schema() == SCHEMA, "python -m proposals.dataset.schema > proposals/dataset/schema.json"


def test_real_manifests_fit(manifest):
    jsonschema.validate(manifest, SCHEMA)
    assert set(SCHEMA["required"]) == set(manifest)
    assert _is_valid(manifest | {"format_version": "1.12", "novelty": {"of": "a newer minor version"}})


def test_no_field_may_be_missing(manifest):
    for name in manifest:
        assert not _is_valid({key: value for key, value in manifest.items() if key != name})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), "other"),
        (("format_version",), "2.0"),
        (("format_version",), 1.0),
        (("digest",), "0" * 63),
        (("recipe", "mode"), "slow"),
        (("recipe", "max_side"), "512"),
        (("recipe", "novelty"), 1),
        (("recipe_fingerprint",), "x"),
        (("totals", "images"), -1),
        (("totals", "statuses"), {"splendid": 1}),
        (("plan", "path"), "other.parquet"),
        (("plan", "sha256"), "A" * 64),
        (("shards", 0, "name"), "../0"),
        (("shards", 0, "images"), 10**9),
        (("shards", 0, "proposals"), 1.5),
        (("shards", 0, "tar"), "shards/00000.tar"),
        (("shards", 0, "parquet", "bytes"), -1),
        (("shards",), None),
        (("consolidated",), {}),
        (("versions",), []),
    ],
)
def test_broken_manifests_do_not_fit(manifest, place, value):
    broken = copy.deepcopy(manifest)
    inside = broken
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    assert not _is_valid(broken)
