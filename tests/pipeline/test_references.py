"""`--images reference`: boxes without tars, images read where they are."""

import io
import json
import shutil
import tarfile

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.repair import repair_dataset
from pipeline.sources import open_source
from proposals.cli import build_app
from proposals.dataset import open_dataset
from proposals.dataset.consolidated import consolidate
from proposals.dataset.manifest import read_manifest
from proposals.dataset.merge import merge_datasets
from proposals.dataset.schema import manifest_schema
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe

_RECIPE = Recipe(max_side=96)


@pytest.fixture
def images(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "images")


@pytest.fixture
def referring(images, mine_folder, tmp_path):
    return mine_folder(images, tmp_path / "referring" / "out", _RECIPE, embed=False)


@pytest.fixture(scope="module")
def embedding(photos, mine_folder, tmp_path_factory):
    return mine_folder(photos, tmp_path_factory.mktemp("embedding") / "out", _RECIPE)


def _assert_same_records(one, two):
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert first.sha256 == second.sha256
        assert first.image_bytes() == second.image_bytes()
        assert np.array_equal(first.boxes, second.boxes)


def test_a_dataset_without_tars_holds_the_same_boxes_and_reads_the_same_images(referring, embedding):
    _assert_same_records(open_dataset(referring), open_dataset(embedding))
    assert not list(referring.glob("shards/*.tar"))
    assert verify_dataset(referring, deep=True).problems == ()
    table = pq.read_table(referring / "shards" / "00000.parquet")
    assert table.column("tar_offset").null_count == table.num_rows
    content = json.loads((referring / "dataset.json").read_bytes())
    jsonschema.validate(content, manifest_schema())
    assert (content["format_version"], content["images"]["kind"]) == ("1.1", "folder")
    assert "images" not in json.loads((embedding / "dataset.json").read_bytes())
    assert json.loads((embedding / "dataset.json").read_bytes())["format_version"] == "1.0"


def test_verbs_that_look_read_images_where_they_are(referring, embedding, tmp_path):
    runner, app = CliRunner(), build_app()
    sheets = [tmp_path / "one.png", tmp_path / "two.png"]
    for dataset, sheet in zip((referring, embedding), sheets, strict=True):
        assert runner.invoke(app, ["show", str(dataset), "--out", str(sheet)]).exit_code == 0
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    assert runner.invoke(app, ["report", str(referring), "-o", str(tmp_path / "page.html")]).exit_code == 0
    boxes = [tmp_path / "one.json", tmp_path / "two.json"]
    for dataset, file in zip((referring, embedding), boxes, strict=True):
        assert runner.invoke(app, ["convert", str(dataset), str(file), "--to", "coco"]).exit_code == 0
    assert boxes[0].read_bytes() == boxes[1].read_bytes()
    assert consolidate(referring)
    assert verify_dataset(referring, deep=True).problems == ()


def test_an_image_that_changed_is_found_by_its_sha256_and_refused_by_its_size(referring, images):
    path, dataset = images / "cat.jpg", open_dataset(referring)
    index = next(i for i, record in enumerate(dataset) if record.uri == "cat.jpg")
    original = path.read_bytes()
    path.write_bytes(original[:-1] + b"\0")
    assert verify_dataset(referring).problems == ()
    (problem,) = verify_dataset(referring, deep=True).problems
    assert "'cat.jpg' has changed since it was mined" in problem.what
    path.write_bytes(original + b"\0")
    with pytest.raises(AlignDetError, match=r"cat\.jpg .* has changed since it was mined"):
        dataset.image_bytes(index)
    path.unlink()
    with pytest.raises(AlignDetError, match=r"cat\.jpg cannot be read .* missing"):
        dataset.image_bytes(index)
    assert "missing" in verify_dataset(referring, deep=True).problems[0].what


def test_images_in_tars_and_tables_are_read_there(photos, mine_folder, tmp_path):
    files = sorted(photos.glob("*.jpg"))[:3]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in files:
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    for name in ("a.tar", "a.parquet"):
        source = open_source(str(tmp_path / name))
        out = mine_folder(source, tmp_path / f"out of {name}", _RECIPE, embed=False)
        assert [record.image_bytes() for record in open_dataset(out)] == [path.read_bytes() for path in files]
        assert verify_dataset(out, deep=True).problems == ()


def test_embedding_and_referring_jobs_do_not_mix(referring, embedding, images, photos, mine_folder, tmp_path):
    with pytest.raises(AlignDetError, match=r"images\.root: .*images there, None here"):
        mine_folder(images, referring, _RECIPE)
    with pytest.raises(AlignDetError, match="one dataset has its images in one place"):
        merge_datasets([referring, embedding], tmp_path / "merged")


def test_added_images_are_referred_to_as_well(referring, images, photos, mine_folder):
    shutil.copy(photos / "cat.jpg", images / "new.jpg")
    mine_folder(images, referring, _RECIPE, embed=False)
    assert len(open_dataset(referring)) == 9
    assert not list(referring.glob("shards/*.tar"))
    assert verify_dataset(referring, deep=True).problems == ()


def test_a_lost_table_is_mined_again_from_the_images(referring, images, content):
    before = content(referring)
    (referring / "shards" / "00001.parquet").unlink()
    assert repair_dataset(referring, [images], 1, lambda file: None).problems == ()
    assert content(referring) == before


def test_a_table_that_is_too_small_for_what_dataset_json_says_is_refused(referring):
    manifest = read_manifest(referring)
    entry = manifest.shards[0]
    for claim in ({"proposals": 2**31 - 1}, {"images": 1_000_000, "statuses": {"ok": 1_000_000}}):
        with pytest.raises(ValueError, match="too small to hold"):
            type(entry).model_validate({**entry.model_dump(), **claim})


def test_a_place_on_this_machine_is_not_published(referring, tmp_path):
    out = tmp_path / "hub"
    done = CliRunner().invoke(build_app(), ["convert", str(referring), str(out), "--to", "huggingface"])
    assert isinstance(done.exception, AlignDetError)
    assert "Mine them again without `--images reference`" in str(done.exception)
    assert not out.exists()
