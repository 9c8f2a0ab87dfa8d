"""The job on a real Ray, in real processes, with real kills."""

import os
import shutil
import signal
from importlib.util import find_spec

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.job import JobOptions, run_job
from pipeline.progress import LiveProgress
from pipeline.sources import FolderSource, open_source
from proposals.dataset import open_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe
from tests.pipeline.nobody import Nobody

_ONE = ("--images-per-shard", "1", "--max-side", "200")


@pytest.fixture(scope="module")
def undisturbed(photos, mine_folder, tmp_path_factory, content):
    """What the same job gives in one process, without Ray: the bytes every run must reproduce."""
    out = tmp_path_factory.mktemp("undisturbed") / "dataset"
    return content(mine_folder(photos, out, Recipe(max_side=200), images_per_shard=1))


def test_two_workers_give_the_same_bytes(photos, tmp_path, start, content, undisturbed):
    status, output = start(photos, tmp_path / "out", "--workers", "2", *_ONE).wait()
    assert status == 0, output
    assert content(tmp_path / "out") == undisturbed
    assert "8 in 8 shards" in output
    assert "ms/image" in output


@pytest.mark.slow
def test_one_worker_of_the_oracle_that_is_killed_gives_the_same_bytes(
    photos, tmp_path, start, content, undisturbed
):
    mining = start(photos, tmp_path / "out", "--workers", "1", "--engine", "opencv", *_ONE)
    mining.kill_worker()
    status, output = mining.wait()
    assert status == 0, output
    assert content(tmp_path / "out") == undisturbed


def test_a_killed_driver_is_resumed_to_the_same_bytes(photos, tmp_path, start, content, undisturbed):
    out = tmp_path / "out"
    first = start(photos, out, "--workers", "1", *_ONE)
    first.wait_for_shards(2)
    first.process.kill()
    first.wait()
    assert not (out / "dataset.json").exists()
    (out / "shards" / f"00007.tar.tmp-{'d' * 32}").write_bytes(b"left by a task that died")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shards/*.json")}
    status, output = start(photos, out, "--workers", "2", *_ONE).wait()
    assert status == 0, output
    assert "resuming" in output
    assert content(out) == undisturbed
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


@pytest.mark.slow
def test_control_c_says_how_to_go_on_and_a_changed_recipe_is_refused(
    photos, tmp_path, start, content, undisturbed
):
    out = tmp_path / "out"
    mining = start(photos, out, "--workers", "1", *_ONE)
    mining.wait_for_shards(1)
    mining.process.send_signal(signal.SIGINT)
    status, output = mining.wait()
    assert status == 130
    assert "Run the same command again to resume" in output
    assert "Traceback" not in output
    before = content(out)
    status, output = start(photos, out, "--images-per-shard", "1", "--max-side", "100", "--seed", "4").wait()
    assert status == 1
    assert "recipe.max_side: 200 there, 100 here" in output
    assert "recipe.seed: 0 there, 4 here" in output
    assert content(out) == before
    status, output = start(photos, out, *_ONE).wait()
    assert (status, content(out)) == (0, undisturbed), output


@pytest.mark.slow
def test_a_shard_that_fails_is_named_and_the_rest_is_kept(photos, tmp_path, start, content, undisturbed):
    out = tmp_path / "out"
    mining = start(photos, out, "--workers", "1", *_ONE)
    mining.wait_for_shards(1)
    (out / "shards" / "00006.tar" / "in the way").mkdir(parents=True)
    status, output = mining.wait()
    assert status == 1
    assert "1 of 8 shards failed" in output
    assert "shard 00006: IsADirectoryError" in output
    assert len(list(out.glob("shards/*.json"))) == 7
    assert not (out / "dataset.json").exists()
    shutil.rmtree(out / "shards" / "00006.tar")
    assert start(photos, out, "--quiet", *_ONE).wait() == (0, "")
    assert content(out) == undisturbed


def test_a_finished_job_writes_nothing(mined_dataset, photos, start):
    def times():
        return {path: path.stat().st_mtime_ns for path in [mined_dataset, *mined_dataset.rglob("*")]}

    before = times()
    status, output = start(photos, mined_dataset, "--images-per-shard", "3").wait()
    assert status == 0, output
    assert "complete already" in output
    assert times() == before


def test_only_opencvs_engine_needs_ximgproc(mined_dataset, photos, monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    source, recipe, observer = FolderSource(photos), Recipe(), LiveProgress(Console(), quiet=True)
    assert run_job(source, mined_dataset, recipe, JobOptions(3), observer).already_complete
    with pytest.raises(AlignDetError, match="has no ximgproc"):
        run_job(source, mined_dataset, recipe, JobOptions(3, engine="opencv"), observer)


def test_the_pixel_limit_is_part_of_the_recipe(photos, tmp_path, start):
    status, output = start(photos, tmp_path / "out", *_ONE, "--max-pixels", "26800").wait()
    assert status == 0, output
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest.recipe.max_pixels == 26800
    reasons = pq.read_table(tmp_path / "out" / "rejected.parquet").column("reason").to_pylist()
    assert set(reasons) == {"too_many_pixels"}
    assert manifest.totals.images + len(reasons) == 8
    assert manifest.totals.images
    assert reasons


def test_a_folder_of_something_else_is_left_alone(photos, tmp_path, start):
    (tmp_path / "letter.txt").write_text("dear diary")
    status, output = start(photos, tmp_path).wait()
    assert status == 1
    assert "is not empty and holds no mining job" in output
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_folder_inside_another_dataset_is_refused(photos, mined_dataset, mine_folder):
    before = sorted(mined_dataset.rglob("*"))
    for inside in ("out", "shards/out"):
        with pytest.raises(AlignDetError, match="lies inside another dataset"):
            mine_folder(photos, mined_dataset / inside)
    assert sorted(mined_dataset.rglob("*")) == before


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="for a machine without gcsfs")
def test_images_whose_library_is_missing_end_the_job_and_reject_nothing(tmp_path, start):
    (tmp_path / "list.txt").write_text("gs://bucket/a.jpg\ngs://bucket/b.jpg\n")
    out = tmp_path / "out"
    status, output = start(tmp_path / "list.txt", out, "--images-per-shard", "1", "--workers", "1").wait()
    assert status == 3, output
    assert "gcsfs" in output
    assert "Traceback" not in output
    assert not list(out.glob("shards/*.json"))


def test_wrong_options_are_one_sentence(photos, tmp_path, start):
    for option, value, message in [
        ("--filter", "ratio3", "ratio<R>size"),
        ("--address", "127.0.0.1:1", "no Ray cluster answers"),
    ]:
        status, output = start(photos, tmp_path / "out", option, value).wait()
        assert status == 1
        assert message in output
        assert "Traceback" not in output


def test_two_files_that_a_dataset_could_not_tell_apart_are_refused_and_none_is_dropped(tmp_path):
    (tmp_path / "in").mkdir()
    for name in (b"a\xff.jpg", b"a\\xff.jpg"):
        with open(os.fsencode(tmp_path / "in") + b"/" + name, "wb") as stream:  # noqa: PTH123 - a name that is no text
            stream.write(name)
    with pytest.raises(AlignDetError, match=r"a\\xff.jpg and b'a\\xff.jpg', which is not UTF-8"):
        run_job(FolderSource(tmp_path / "in"), tmp_path / "out", Recipe(), JobOptions(), Nobody())
    assert not (tmp_path / "out").exists()


def test_datasets_below_the_source_are_named(photos, tmp_path, mine_folder):
    out = mine_folder(photos, tmp_path / "tables" / "earlier", Recipe(max_side=64))
    pq.write_table(pa.table({"raw": [(photos / "cat.jpg").read_bytes()]}), tmp_path / "tables" / "a.parquet")
    source, said = open_source(str(tmp_path / "tables"), "parquet"), list[str]()

    class Listening(Nobody):
        def say(self, sentence):
            said.append(sentence)

    with pytest.raises(AlignDetError, match="belongs to another job"):
        run_job(source, out, Recipe(), JobOptions(), Listening())
    assert said == ["datasets below the source, no part of it: earlier"]
