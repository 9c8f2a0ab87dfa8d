"""`aligndet verify --repair`: the damaged part is made again, to the committed bytes, and only that part."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import layout
from proposals.dataset.verify import verify_dataset


@pytest.fixture(scope="module")
def source(photos, tmp_path_factory):
    folder = shutil.copytree(photos, tmp_path_factory.mktemp("repair") / "in")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def whole(source, mine_folder, tmp_path_factory):
    return mine_folder(source, tmp_path_factory.mktemp("repair") / "whole")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _repair(root, *folders):
    options = [part for folder in folders for part in ("--images", str(folder))]
    return CliRunner().invoke(build_app(), ["verify", str(root), "--repair", *options])


@pytest.mark.parametrize(
    "damaged",
    [
        ["shards/00000.tar"],
        ["shards/00001.parquet", "shards/00001.json"],
        ["shards/00000.json", "rejected.parquet"],
        ["dataset.json"],
        ["plan.parquet"],
        ["rejected.parquet"],
        ["dataset.json", "shards/00001.tar", "rejected.parquet"],
    ],
)
def test_what_is_damaged_is_made_again_and_nothing_else(copy, whole, source, content, damaged):
    kept = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    for file in damaged:
        _flip(copy / file)
    shards = {file.split("/")[1][:5] for file in damaged if "/" in file}
    result = _repair(copy, source)
    assert result.exit_code == 0, result.output
    assert "is clean" in result.output
    assert content(copy) == content(whole)
    for path, then in kept.items():
        file = path.relative_to(copy).as_posix()
        if (
            file not in damaged
            and path.name[:5] not in shards
            and file not in ("rejected.parquet", "dataset.json")
        ):
            assert path.stat().st_mtime_ns == then


def test_a_missing_shard_comes_back(copy, whole, source, content):
    for path in copy.glob("shards/00001.*"):
        path.unlink()
    assert _repair(copy, source).exit_code == 0
    assert content(copy) == content(whole)


def test_a_clean_dataset_is_left_alone(copy, source):
    before = {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]}
    assert _repair(copy, source).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]} == before


def test_a_changed_image_never_replaces_what_was_committed(copy, source, tmp_path):
    _flip(copy / "shards" / "00000.tar")
    damaged = (copy / "shards" / "00000.tar").read_bytes()
    changed = shutil.copytree(source, tmp_path / "changed")
    shutil.copy(changed / "cat.jpg", changed / "astronaut.jpg")
    result = _repair(copy, changed)
    assert "mined again from" in str(result.exception)
    assert "an image changed or is gone" in str(result.exception)
    assert (copy / "shards" / "00000.tar").read_bytes() == damaged
    assert not list(copy.glob("*.tmp-*"))


def test_it_asks_for_the_images(copy):
    _flip(copy / "shards" / "00000.tar")
    assert "--images FOLDER" in str(_repair(copy).exception)


def test_damage_that_nothing_proves_is_said_to_be_beyond_repair(copy, source):
    _flip(copy / layout.MANIFEST)
    _flip(layout.record_path(copy, "00000"))
    assert "what proves it is damaged too" in str(_repair(copy, source).exception)


def test_files_of_somebody_else_are_left_and_named(copy, source):
    (copy / "notes.txt").write_text("mine")
    result = _repair(copy, source)
    assert result.exit_code == 1
    assert "notes.txt: is unexpected" in result.output
    assert (copy / "notes.txt").exists()
    assert json.loads((copy / layout.MANIFEST).read_text())
    assert verify_dataset(copy).damaged_shards == ()
