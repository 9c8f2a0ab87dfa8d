"""The column of a table that holds the images is part of what a job is."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.begin import begin
from pipeline.claim import release
from pipeline.commit import commit
from pipeline.job import JobOptions, run_job
from pipeline.plan import make_plan
from pipeline.retry import begin_retry
from pipeline.shard_task import Work, mine_shard
from pipeline.sources import open_source
from proposals.dataset import layout
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import library_versions, read_manifest
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe
from tests.pipeline.nobody import Nobody

_RECIPE = Recipe(max_side=64)


@pytest.fixture
def table(photos, tmp_path):
    """Two images a row, of one size."""
    left, right = ((photos / name).read_bytes() for name in ("cat.jpg", "china.jpg"))
    pq.write_table(pa.table({"left": [left, b"torn"], "right": [right, b"torn"]}), tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def _run(table, column, out, **options):
    return run_job(open_source(table, column=column), out, _RECIPE, JobOptions(1, **options), Nobody())


def _begin(table, column, out):
    source = open_source(table, column=column)
    plan = make_plan(source.entries(), 1)
    info = plan.source(source.kind, source.images.column)
    identity = JobIdentity(recipe=_RECIPE, source=info, images_per_shard=1, versions=library_versions())
    return source, begin(out, plan, identity)


def _mine(table, column, out):
    source, opened = _begin(table, column, out)
    work = Work(source, out, _RECIPE, opened.identity.fingerprint())
    commit(opened, {task.name: mine_shard(task, work) for task in opened.pending})
    return out


def test_another_column_is_another_job(table, tmp_path):
    begun, done = tmp_path / "begun", _mine(table, "left", tmp_path / "done")
    _begin(table, "left", begun)
    release(begun)
    for out in (begun, done):
        with pytest.raises(AlignDetError, match=r"source\.column: left there, right here"):
            _run(table, "right", out)
    with pytest.raises(AlignDetError, match=r"source\.column: left there, right here"):
        _run(table, "right", done, retry_rejected=True)
    assert _run(table, "left", done).already_complete
    assert read_manifest(done).source.column == "left"
    assert not verify_dataset(done, deep=True).problems


def test_a_dataset_that_does_not_tell_its_column_is_still_its_own_jobs(table, mine_folder, tmp_path):
    source = open_source(table, column="left")
    out = mine_folder(source, tmp_path / "out", _RECIPE, 1)
    assert "column" not in json.loads((out / layout.MANIFEST).read_text())["source"]
    assert _run(table, "left", out).already_complete
    assert begin_retry(out, _RECIPE, source).pending
    (out / layout.MANIFEST).unlink()
    (out / layout.APPEND).unlink()
    _, resumed = _begin(table, "left", out)
    assert sorted(resumed.done) == ["00000", "00001"]


def test_jobs_without_a_column_are_what_they_were():
    source = {"kind": "folder", "images": 3, "fingerprint": "0" * 64}
    job = {"recipe": _RECIPE.model_dump(), "source": source, "images_per_shard": 1, "versions": {}}
    identity = JobIdentity.model_validate(job)
    assert json.loads(identity.model_dump_json(exclude_none=True)) == job


@pytest.mark.parametrize("text", [pa.string(), pa.large_string()])
def test_rows_are_named_by_their_paths_of_any_kind_of_text(text, photos, tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", text)])
    image = {"bytes": (photos / "cat.jpg").read_bytes(), "path": "photos/cat.jpg"}
    pq.write_table(pa.table({"image": pa.array([image], kind)}), tmp_path / "a.parquet")
    assert [entry.uri for entry in open_source(str(tmp_path / "a.parquet")).entries()] == [
        "a.parquet/0/cat.jpg"
    ]
