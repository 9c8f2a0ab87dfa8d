"""`aligndet verify --repair`: the damaged part is made again, to the committed bytes, and only that part."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import image_process
from pipeline.image_records import Refusal
from pipeline.planted_faults import VARIABLE
from pipeline.sources import open_source
from proposals.cli import build_app
from proposals.dataset import layout
from proposals.dataset.consolidated import consolidate
from proposals.dataset.manifest import read_manifest, read_record
from proposals.dataset.merge import merge_datasets
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError, NewerFormatError
from proposals.recipe import Recipe
from tests.damage import flip_a_bit, write_sealed


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


def _repair(root, *folders, options=()):
    images = [part for folder in folders for part in ("--images", str(folder))]
    return CliRunner().invoke(build_app(), ["verify", str(root), "--repair", *images, *options])


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
        flip_a_bit(copy / file)
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


def test_nothing_is_written_through_a_link(copy, source, tmp_path):
    outside = shutil.move(copy / "shards", tmp_path / "outside")
    (copy / "shards").symlink_to(outside)
    flip_a_bit(outside / "00000.tar")
    before = {path: path.read_bytes() for path in outside.iterdir()}
    result = _repair(copy, source)
    assert isinstance(result.exception, AlignDetError)
    assert "is a link" in str(result.exception)
    assert {path: path.read_bytes() for path in outside.iterdir()} == before


def test_a_missing_shard_comes_back(copy, whole, source, content):
    for path in copy.glob("shards/00001.*"):
        path.unlink()
    assert _repair(copy, source).exit_code == 0
    assert content(copy) == content(whole)


def test_all_shards_come_back_with_their_folder(copy, whole, source, content):
    shutil.rmtree(copy / layout.SHARDS)
    (copy / layout.SHARDS).write_bytes(b"")
    assert "shards is a file, where a folder should be" in str(_repair(copy, source).exception)
    (copy / layout.SHARDS).unlink()
    assert _repair(copy, source).exit_code == 0
    assert content(copy) == content(whole)


def test_a_clean_dataset_is_left_alone(copy, source):
    before = {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]}
    assert _repair(copy, source).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in [copy, *copy.rglob("*")]} == before


def test_a_changed_image_never_replaces_what_was_committed(copy, source, tmp_path):
    flip_a_bit(copy / "shards" / "00000.tar")
    damaged = (copy / "shards" / "00000.tar").read_bytes()
    changed = shutil.copytree(source, tmp_path / "changed")
    shutil.copy(changed / "cat.jpg", changed / "astronaut.jpg")
    result = _repair(copy, changed)
    assert "mined again from" in str(result.exception)
    assert "an image changed or is gone" in str(result.exception)
    assert (copy / "shards" / "00000.tar").read_bytes() == damaged
    assert not list(copy.glob("*.tmp-*"))


@pytest.mark.parametrize(
    "damaged", [["shards/00000.tar"], ["shards/00000.json"], ["shards/00000.tar", "rejected.parquet"]]
)
def test_why_an_image_was_rejected_stays_what_was_committed(source, mine_folder, tmp_path, content, damaged):
    # Verdicts that depend on the machine: mined again, the first image is no image, and the other sound.
    late = Refusal.without_traceback("propose", "timeout", "no result within the time limit")
    quarantine = {layout.key_of(uri): late for uri in ("broken.jpg", "cat.jpg")}
    root = mine_folder(source, tmp_path / "out", quarantine=quarantine)
    rejected = [row.reason for row in read_record(layout.record_path(root, "00000")).rejected]
    assert rejected == ["timeout", "timeout"]
    before = content(root)
    for file in damaged:
        flip_a_bit(root / file)
    result = _repair(root, source)
    assert result.exit_code == 0, result.output
    assert content(root) == before


@pytest.mark.parametrize(
    ("fault", "reason", "advice"),
    [
        ("hang", "timeout", "longer --image-timeout"),
        ("memory", "out_of_memory", "more --image-memory"),
        ("crash", "crashed", "another machine"),
    ],
)
def test_an_image_that_this_machine_is_too_small_for_is_called_neither_changed_nor_gone(
    copy, source, monkeypatch, fault, reason, advice
):
    flip_a_bit(copy / "shards" / "00000.tar")
    monkeypatch.setenv(VARIABLE, json.dumps({"cat.jpg": fault}))
    limits = ["--image-timeout", "3" if fault == "hang" else "60", "--image-memory", "0.5"]
    refusal = str(_repair(copy, source, options=limits).exception)
    assert f"cat.jpg is rejected as {reason} here" in refusal
    assert advice in refusal
    assert "an image changed" not in refusal


def test_a_dataset_of_large_images_has_the_time_it_was_mined_with_to_be_repaired(
    source, mine_folder, tmp_path
):
    root = mine_folder(source, tmp_path / "out", Recipe(max_side=1500))
    flip_a_bit(root / "shards" / "00000.tar")
    assert _repair(root, source).exit_code == 0
    assert image_process._shared.limits.seconds == 270


def test_images_that_a_list_names_elsewhere_are_said_to_be_no_files_below_a_folder(
    source, mine_folder, tmp_path
):
    lines = [str(source / name) for name in ("astronaut.jpg", "cat.jpg", "broken.jpg")]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    root = mine_folder(open_source(str(tmp_path / "list.txt")), tmp_path / "out")
    flip_a_bit(root / "shards" / "00000.tar")
    refusal = str(_repair(root, source).exception)
    assert f"{lines[0]} is a URL or an absolute path" in refusal
    assert "changed or is gone" not in refusal


def test_it_asks_for_the_images(copy):
    flip_a_bit(copy / "shards" / "00000.tar")
    assert "--images FOLDER" in str(_repair(copy).exception)


def test_a_folder_that_holds_none_of_the_images_is_a_users_error(copy, source, content, tmp_path):
    flip_a_bit(copy / "shards" / "00000.tar")
    before = content(copy)
    for place in (tmp_path / "typo", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        result = _repair(copy, place)
        assert "shard 00000" in str(result.exception)
        assert "could not be mined again" in str(result.exception)
        assert isinstance(result.exception, AlignDetError)
        assert content(copy) == before


def test_damage_that_nothing_proves_is_said_to_be_beyond_repair(copy, source):
    flip_a_bit(copy / layout.MANIFEST)
    flip_a_bit(layout.record_path(copy, "00000"))
    assert "what proves it is missing or damaged too" in str(_repair(copy, source).exception)


def test_files_of_somebody_else_are_left_and_named(copy, source):
    (copy / "notes.txt").write_text("mine")
    result = _repair(copy, source)
    assert result.exit_code == 1
    assert "notes.txt: is unexpected" in result.output
    assert (copy / "notes.txt").exists()
    assert json.loads((copy / layout.MANIFEST).read_text())
    assert verify_dataset(copy).damaged_shards == ()


def test_a_missing_manifest_is_rebuilt_to_the_same_bytes(copy, whole, content):
    (copy / layout.MANIFEST).unlink()
    result = _repair(copy)  # no shard is damaged, so no image is asked for
    assert result.exit_code == 0, result.output
    assert "repaired: dataset.json" in result.output
    assert content(copy) == content(whole)


def test_the_manifest_of_a_grown_and_merged_dataset_is_rebuilt(source, mine_folder, whole, tmp_path, content):
    grown = shutil.copytree(source, tmp_path / "in")
    grown_out = mine_folder(grown, tmp_path / "grown")
    (grown / "new").mkdir()
    shutil.copy(source / "cat.jpg", grown / "new" / "new.jpg")
    mine_folder(grown, grown_out)
    other = mine_folder(grown / "new", tmp_path / "other")
    merge_datasets([whole, other], tmp_path / "merged")
    for root in (grown_out, tmp_path / "merged"):
        before = content(root)
        (root / layout.MANIFEST).unlink()
        assert _repair(root).exit_code == 0
        assert content(root) == before


def test_a_manifest_is_not_made_up_where_a_record_is_missing(copy, content):
    (copy / layout.MANIFEST).unlink()
    layout.record_path(copy, "00001").unlink()
    before = content(copy)
    result = _repair(copy)
    assert "00001.json" in str(result.exception)
    assert "run that job again" in str(result.exception)
    assert content(copy) == before


def test_a_plan_and_records_of_different_jobs_prove_nothing(copy, whole, source, mine_folder, tmp_path):
    (copy / layout.MANIFEST).unlink()
    other = mine_folder(source, tmp_path / "other", images_per_shard=4)
    shutil.copy(other / layout.PLAN, copy / layout.PLAN)
    assert "tells of shard 00000 with 3 images, not of 4" in str(_repair(copy).exception)
    assert not (copy / layout.MANIFEST).exists()


def _rewrite(path, **changes):
    write_sealed(path, {**json.loads(path.read_text()), **changes})


def _every_byte(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": "2.0"},
        {"format_version": "2.0", "shards": "told in another way"},
        {"format_version": "1.9", "recipe": {"mode": "learned"}},
    ],
)
@pytest.mark.parametrize("options", [[], ["--repair"]])
def test_a_newer_format_is_said_and_never_touched(copy, source, changes, options):
    _rewrite(copy / layout.MANIFEST, **changes)
    before = _every_byte(copy)
    result = CliRunner().invoke(build_app(), ["verify", str(copy), *options])
    assert isinstance(result.exception, NewerFormatError)
    assert "newer than" in str(result.exception)
    assert "Upgrade it" in str(result.exception)
    assert _every_byte(copy) == before


def test_a_newer_minor_format_is_read_but_not_repaired(copy, source):
    _rewrite(copy / layout.MANIFEST, format_version="1.9", invented_since="x")
    assert verify_dataset(copy).problems == ()
    flip_a_bit(copy / "shards" / "00000.tar")
    before = _every_byte(copy)
    assert "Nothing was touched" in str(_repair(copy, source).exception)
    assert _every_byte(copy) == before


def test_records_of_a_newer_format_prove_no_manifest_of_ours(copy):
    (copy / layout.MANIFEST).unlink()
    _rewrite(layout.record_path(copy, "00001"), format_version="1.9")
    assert isinstance(_repair(copy).exception, NewerFormatError)
    assert not (copy / layout.MANIFEST).exists()


@pytest.mark.parametrize("damage", ["flipped", "missing", "shard too"])
def test_consolidated_boxes_outlive_the_manifest_that_listed_them(copy, source, content, damage):
    consolidate(copy)
    before = content(copy)
    flip_a_bit(copy / layout.MANIFEST)
    if damage != "flipped":
        (copy / layout.MANIFEST).unlink()
    if damage == "shard too":
        flip_a_bit(copy / "shards" / "00001.tar")
        assert "--images FOLDER" in str(_repair(copy).exception)
    result = _repair(copy, source)
    assert result.exit_code == 0, result.output
    assert "repaired: proposals.zarr" in result.output
    assert read_manifest(copy).consolidated
    assert content(copy) == before


def test_a_folder_or_link_in_place_of_a_file_is_left_and_named(copy, source):
    (copy / layout.CONSOLIDATED).symlink_to(source)
    assert "proposals.zarr: is unexpected" in _repair(copy).output
    (copy / layout.MANIFEST).unlink()
    (copy / layout.MANIFEST).mkdir()
    assert "is a folder, where a file should be" in str(_repair(copy).exception)


@pytest.mark.parametrize(
    "file", ["plan.parquet", "rejected.parquet", "shards/00001.tar", "shards/00001.json"]
)
def test_a_folder_in_place_of_a_file_is_named_before_anything_is_replaced(copy, source, content, file):
    (copy / file).unlink()
    (copy / file).mkdir()
    (copy / "shards/00000.tar").unlink()
    before = content(copy)
    done = _repair(copy, source)
    assert f"{copy / file} is a folder, where a file should be" in str(done.exception)
    assert content(copy) == before


def test_imported_boxes_are_not_mined_again(copy, source, tmp_path):
    file, back = tmp_path / "boxes.json", tmp_path / "back"
    for arguments in ([copy, file, "--to", "coco"], [file, back, "--to", "dataset", "--images", source]):
        assert CliRunner().invoke(build_app(), ["convert", *map(str, arguments)]).exit_code == 0
    flip_a_bit(back / "rejected.parquet")
    assert _repair(back).exit_code == 0
    flip_a_bit(back / "shards" / "00000.tar")
    assert "aligndet convert FILE NEW_FOLDER" in str(_repair(back, source).exception)


def test_images_that_lie_in_tars_are_not_looked_for_among_files(source, mine_folder, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(source.rglob("*.jpg")):
            tar.add(path, path.name)
    root = mine_folder(open_source(str(tmp_path / "x.tar")), tmp_path / "out")
    flip_a_bit(root / "shards" / "00001.tar")
    done = _repair(root, source)
    assert done.exit_code == 1
    assert "mined from webdataset" in str(done.exception)
    assert "a new folder" in str(done.exception)


def test_names_that_no_file_can_have_stop_no_repair(source, mine_folder, tmp_path, content):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/in/z\xff.jpg"))
    shutil.copytree(source, tmp_path / "in")
    odd.write_bytes(b"no image")
    names = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.jpg"))[:3]]
    (tmp_path / "in" / "list.txt").write_text("\n".join([*names, "x" * 300 + ".jpg"]))
    for name, images, damaged in (
        ("listed", open_source(str(tmp_path / "in" / "list.txt")), "shards/00000.tar"),
        ("folder", tmp_path / "in", "plan.parquet"),
    ):
        out = mine_folder(images, tmp_path / name)
        before = content(out)
        flip_a_bit(out / damaged)
        repaired = _repair(out, tmp_path / "in")
        assert repaired.exit_code == 0, repaired.output
        assert content(out) == before
