"""`aligndet merge`: one dataset of several, its bytes shared with them."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.repair import repair_dataset
from proposals.cli import build_app
from proposals.dataset import layout, open_dataset
from proposals.dataset.manifest import read_manifest, write_model
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe

_SMALL = Recipe(max_side=64)


@pytest.fixture(scope="module")
def folders(photos, tmp_path_factory):
    """Two folders of photographs with a broken file each."""
    made = [tmp_path_factory.mktemp("merge") / name for name in "ab"]
    for folder, names in zip(made, (["cat", "china", "coffee"], ["flower", "astronaut"]), strict=True):
        folder.mkdir()
        for name in names:
            shutil.copy(photos / f"{name}.jpg", folder)
        (folder / f"broken_{folder.name}.jpg").write_bytes(b"no image")
    return made


@pytest.fixture(scope="module")
def inputs(folders, mine_folder, tmp_path_factory):
    roots = [tmp_path_factory.mktemp("merge") / name for name in "ab"]
    return [mine_folder(folder, root, _SMALL, 2) for folder, root in zip(folders, roots, strict=True)]


def _merge(roots, out):
    result = CliRunner().invoke(build_app(), ["merge", *map(str, roots), "-o", str(out)])
    return result.output if result.exception is None else str(result.exception)


def test_all_images_of_both_in_order_and_no_byte_copied(inputs, folders, tmp_path):
    before = {path: path.stat().st_mtime_ns for root in inputs for path in root.rglob("*")}
    assert "5 images" in _merge(inputs, tmp_path / "c")
    merged, parts = open_dataset(tmp_path / "c"), [open_dataset(root) for root in inputs]
    expected = [record for part in parts for record in part]
    assert [record.key for record in merged] == [record.key for record in expected]
    for one, two in zip(merged, expected, strict=True):
        assert one.image_bytes() == two.image_bytes()
        assert (one.boxes == two.boxes).all()
        assert one.tar.stat().st_ino == two.tar.stat().st_ino
    assert {path: path.stat().st_mtime_ns for root in inputs for path in root.rglob("*")} == before
    assert verify_dataset(tmp_path / "c", deep=True).problems == ()
    rejected = pq.read_table(tmp_path / "c" / layout.REJECTED).column("uri").to_pylist()
    assert rejected == ["broken_a.jpg", "broken_b.jpg"]
    for path in (tmp_path / "c").glob("shards/00003.*"):
        path.unlink()
    assert repair_dataset(tmp_path / "c", folders, 1, lambda _: None).problems == ()


def test_on_another_filesystem_files_are_copied(inputs, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    _merge(inputs, tmp_path / "c")
    assert verify_dataset(tmp_path / "c", deep=True).problems == ()
    tars = [layout.tar_path(root, "00000") for root in (inputs[0], tmp_path / "c")]
    assert tars[0].stat().st_ino != tars[1].stat().st_ino


def test_other_recipes_and_versions_are_refused_field_by_field(inputs, folders, mine_folder, tmp_path):
    other = mine_folder(folders[1], tmp_path / "other", Recipe(max_side=65, seed=3))
    message = _merge([inputs[0], other], tmp_path / "c")
    assert "recipe.max_side: 64, here 65" in message
    assert "recipe.seed: 0, here 3" in message
    aged = shutil.copytree(inputs[1], tmp_path / "aged")
    manifest = read_manifest(aged)
    changed = {
        **manifest.versions,
        **dict.fromkeys(("numpy", "opencv", "pillow", "decoding", "pyarrow"), "1.0"),
    }
    write_model(aged / layout.MANIFEST, manifest.model_copy(update={"versions": changed}))
    message = _merge([inputs[0], aged], tmp_path / "c")
    assert all(f"versions.{name}" in message for name in ("numpy", "opencv", "pillow", "decoding"))
    assert "versions.pyarrow" not in message
    assert not (tmp_path / "c").exists()


def test_imported_and_mined_boxes_stay_apart_and_imported_ones_say_so(inputs, tmp_path):
    first, second = inputs
    imported = [tmp_path / "one", tmp_path / "two"]
    for root, copy in zip((first, second), imported, strict=True):
        shutil.copytree(root, copy)
        manifest = read_manifest(copy)
        told = manifest.source.model_copy(update={"kind": "import-coco"})
        write_model(copy / layout.MANIFEST, manifest.model_copy(update={"source": told}))
    assert "were imported, those of" in _merge([imported[0], second], tmp_path / "mixed")
    _merge(imported, tmp_path / "both")
    assert read_manifest(tmp_path / "both").source.kind == "import-merged"
    card = CliRunner().invoke(
        build_app(),
        ["convert", str(tmp_path / "both"), str(tmp_path / "hub"), "--to", "huggingface", "--license", "mit"],
    )
    assert card.exit_code == 0, card.output
    said = (tmp_path / "hub" / "README.md").read_text() + (tmp_path / "hub" / "croissant.json").read_text()
    assert "were imported" in said
    assert "selective" not in said
    assert "| recipe |" not in said


def test_an_image_in_both_is_refused(inputs, tmp_path):
    message = _merge([inputs[0], inputs[0]], tmp_path / "d")
    assert "4 images have the same path" in message
    assert "cat.jpg" in message
    assert not (tmp_path / "d").exists()


def test_images_that_two_have_under_different_names_are_counted(inputs, folders, mine_folder, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for old, new in (("cat", "x"), ("coffee", "y")):
        shutil.copy(folders[0] / f"{old}.jpg", renamed / f"{new}.jpg")
    other = mine_folder(renamed, tmp_path / "other", _SMALL, 2)
    said = _merge([inputs[0], inputs[1], other], tmp_path / "c")
    assert "warning: 2 images have the content of an image in an earlier dataset" in said
    assert "'x.jpg' that of 'cat.jpg' for one" in said
    assert len(open_dataset(tmp_path / "c")) == 7
    assert "warning" not in _merge(inputs, tmp_path / "d") + _merge([other], tmp_path / "e")


def test_two_publishers_images_of_one_name_are_joined_as_the_refusal_says(
    inputs, photos, mine_folder, tmp_path
):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(photos / "astronaut.jpg", other / "cat.jpg")
    theirs = mine_folder(other, tmp_path / "theirs", _SMALL, 2)
    message = _merge([inputs[0], theirs], tmp_path / "c")
    assert "unpack the tars of each into a folder of its own name" in message
    for root, folder, name in ((inputs[0], "x/a", "A2"), (theirs, "y/b", "B2")):
        for tar in (root / "shards").glob("*.tar"):
            shutil.unpack_archive(tar, tmp_path / folder, filter="data")
        images = (tmp_path / folder).parent
        words = ("convert", root, tmp_path / name, "--to", "dataset", "--images", images)
        assert CliRunner().invoke(build_app(), [*map(str, words)]).exit_code == 0
    assert "4 images, " in _merge([tmp_path / "A2", tmp_path / "B2"], tmp_path / "c")
    assert verify_dataset(tmp_path / "c", deep=True).problems == ()
    expected = [record.boxes.tolist() for root in (inputs[0], theirs) for record in open_dataset(root)]
    assert [record.boxes.tolist() for record in open_dataset(tmp_path / "c")] == expected


def test_what_is_there_or_damaged_is_refused(inputs, tmp_path):
    assert "is not empty" in _merge(inputs, inputs[0])
    copy = shutil.copytree(inputs[1], tmp_path / "copy")
    layout.tar_path(copy, "00000").write_bytes(b"short")
    assert "00000.tar has 5 bytes, dataset.json says" in _merge([inputs[0], copy], tmp_path / "c")
    with pytest.raises(AlignDetError):
        open_dataset(tmp_path / "c")


@pytest.mark.parametrize("linked", ["shards/00000.tar", "shards/00000.parquet", "shards"])
def test_what_an_input_only_links_to_does_not_become_a_part(inputs, tmp_path, linked):
    copy = shutil.copytree(inputs[1], tmp_path / "copy")
    (copy / linked).rename(tmp_path / "somebody_elses")
    (copy / linked).symlink_to(tmp_path / "somebody_elses")
    message = _merge([inputs[0], copy], tmp_path / "c")
    assert f"{copy / linked} is a symbolic link" in message
    assert not (tmp_path / "c" / layout.MANIFEST).exists()


def test_a_shard_whose_record_is_not_the_committed_one_is_refused(inputs, tmp_path):
    copy = shutil.copytree(inputs[0], tmp_path / "copy")
    shutil.copy(layout.record_path(copy, "00001"), layout.record_path(copy, "00000"))
    assert f"shard 00000 of {copy} is damaged" in _merge([inputs[1], copy], tmp_path / "c")
    assert not (tmp_path / "c" / layout.MANIFEST).exists()


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_that_differ_the_merge_says_what_holds_for_both(
    inputs, folders, mine_folder, tmp_path, turned
):
    other = mine_folder(folders[1], tmp_path / "other", _SMALL, 5)
    manifest = read_manifest(other)
    repacked = manifest.model_copy(update={"versions": {**manifest.versions, "pyarrow": "1.0"}})
    write_model(other / layout.MANIFEST, repacked)
    _merge([other, inputs[0]] if turned else [inputs[0], other], tmp_path / "c")
    merged = read_manifest(tmp_path / "c")
    shared = {name: version for name, version in manifest.versions.items() if name != "pyarrow"}
    assert merged.versions == shared
    assert merged.images_per_shard == 5


def test_merging_one_dataset_renews_its_digests(inputs, tmp_path):
    old = shutil.copytree(inputs[0], tmp_path / "old")
    for path in (old / layout.MANIFEST, *old.glob("shards/*.json")):
        content = json.loads(path.read_text())
        del content["digest"]
        path.write_text(json.dumps(content))
    assert verify_dataset(old).problems
    _merge([old], tmp_path / "new")
    assert verify_dataset(tmp_path / "new", deep=True).problems == ()
    assert read_manifest(tmp_path / "new") == read_manifest(inputs[0])


def test_a_dataset_whose_plan_is_not_the_committed_one_is_refused(inputs, tmp_path):
    half = shutil.copytree(inputs[0], tmp_path / "half")
    shutil.copy(inputs[1] / layout.PLAN, half / layout.PLAN)
    assert "dataset.json says" in _merge([half, inputs[1]], tmp_path / "c")
    assert not (tmp_path / "c").exists()
