"""A job that was stopped: what it began is finished first, and what is not proven done is mined again."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.claim import release
from pipeline.commit import commit
from pipeline.heartbeat import this_process, write_beat
from proposals.dataset import assemble, layout, open_dataset
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import temporary_name
from proposals.dataset.manifest import read_manifest, write_model
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe
from tests.pipeline.jobs_by_hand import RECIPE, begun, finish, mined, two_images


@pytest.fixture
def images(photos, tmp_path):
    return two_images(photos, tmp_path / "in")


def test_a_job_that_was_stopped_is_finished_before_images_that_came_since_are_added(images, photos, tmp_path):
    out = tmp_path / "out"
    shutil.copy(photos / "flower.jpg", images / "flower.jpg")
    stopped = begun(images, out)
    first, _ = stopped.pending
    mined(images, stopped, [first])
    release(out)
    done = layout.record_path(out, first.name).read_bytes()
    shutil.copy(photos / "coffee.jpg", images / "added.jpg")
    said = []
    again = begun(images, out, said)
    assert "1 images came since this job began" in said[0]
    assert [task.name for task in again.pending] == ["00001"]
    finish(images, again)
    assert [record.uri for record in open_dataset(out)] == ["cat.jpg", "china.jpg", "flower.jpg"]
    assert layout.record_path(out, first.name).read_bytes() == done
    finish(images, begun(images, out))
    assert [record.uri for record in open_dataset(out)] == ["cat.jpg", "china.jpg", "flower.jpg", "added.jpg"]
    assert verify_dataset(out, deep=True).problems == ()


def test_images_that_are_gone_since_a_job_was_stopped_are_named(images, photos, tmp_path):
    out = tmp_path / "out"
    begun(images, out)
    release(out)
    (images / "cat.jpg").unlink()
    shutil.copy(photos / "coffee.jpg", images / "china.jpg")
    with pytest.raises(AlignDetError, match="belongs to another job") as refused:
        begun(images, out)
    assert "1 images removed: cat.jpg" in str(refused.value)
    assert "1 images changed in size: china.jpg" in str(refused.value)


@pytest.fixture(scope="module")
def undisturbed(photos, mine_folder, tmp_path_factory):
    return mine_folder(photos, tmp_path_factory.mktemp("undisturbed") / "out", RECIPE)


@pytest.fixture(scope="module")
def other(photos, mine_folder, tmp_path_factory):
    """The same images by another recipe: other boxes in files of the same names."""
    return mine_folder(photos, tmp_path_factory.mktemp("other") / "out", Recipe(max_side=100))


@pytest.mark.parametrize("damage", ["lost", "short", "of another shard", "of another job"])
def test_a_shard_without_a_proof_is_mined_again(
    photos, undisturbed, other, mine_folder, content, tmp_path, damage
):
    # As of a job that was stopped when all of its shards were done.
    out = shutil.copytree(undisturbed, tmp_path / "out")
    for name in (layout.MANIFEST, layout.REJECTED):
        (out / name).unlink()
    tar, record = layout.tar_path(out, "00001"), layout.record_path(out, "00001")
    if damage == "lost":
        tar.unlink()
    elif damage == "short":
        os.truncate(tar, tar.stat().st_size - 512)
    elif damage == "of another shard":
        shutil.copy(layout.record_path(out, "00000"), record)
    else:
        for path in (other / layout.SHARDS).glob("00001.*"):
            shutil.copy(path, out / layout.SHARDS)
    kept = layout.record_path(out, "00002").stat().st_mtime_ns
    mine_folder(photos, out, RECIPE)
    assert content(out) == content(undisturbed)
    assert layout.record_path(out, "00002").stat().st_mtime_ns == kept


def _leave(out, *names):
    """What a task that is killed while it writes these files leaves of them."""
    left = [out / f"{name}{layout.TEMPORARY_MARK}{place:032x}" for place, name in enumerate(names)]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")
    return left


def _begins_anew(images, photos, out):
    return _leave(out, layout.PLAN)


def _goes_on(images, photos, out):
    begun(images, out)
    return _leave(out, layout.PLAN, "shards/00000.tar", "shards/00000.parquet")


def _begins_to_grow(images, photos, out):
    finish(images, begun(images, out))
    shutil.copy(photos / "coffee.jpg", images / "added.jpg")
    return _leave(out, "shards/00001.tar")


def _goes_on_growing(images, photos, out):
    finish(images, begun(images, out))
    shutil.copy(photos / "coffee.jpg", images / "added.jpg")
    begun(images, out)
    return _leave(out, "shards/00001.tar")


@pytest.mark.parametrize("job", [_begins_anew, _goes_on, _begins_to_grow, _goes_on_growing])
def test_what_killed_tasks_left_takes_no_room_any_more_once_a_job_is_opened_and_once_it_is_done(
    images, photos, tmp_path, job
):
    out = tmp_path / "out"
    left = job(images, photos, out)
    release(out)
    again = begun(images, out)
    assert not [path for path in left if path.exists()]
    _leave(out, "shards/00000.json", "shards/00001.tar")
    finish(images, again)
    report = verify_dataset(out, deep=True)
    assert (report.problems, report.unfinished) == ((), ())


_COMMITTING = """
import os
import signal
import sys
import time
from pathlib import Path

from proposals.dataset.consolidated import consolidate
from tests.pipeline.jobs_by_hand import begun, finish

images, out, held = map(Path, sys.argv[1:4])


def meet(event, values):
    # Before dataset.json gets its name: all of it is written to the temporary one.
    if event == "os.rename" and os.fspath(values[1]) == str(out / "dataset.json"):
        if sys.argv[5] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        held.touch()
        while held.exists():
            time.sleep(0.01)


sys.addaudithook(meet)
if sys.argv[4] == "consolidate":
    consolidate(out)
else:
    finish(images, begun(images, out))
"""


def _committing(images, out, verb, how):
    """A process that dies, or waits for as long as ``held`` is there, with dataset.json written but for its name."""
    held = out.parent / "held"
    command = [sys.executable, "-c", _COMMITTING, images, out, held, verb, how]
    process = subprocess.Popen(list(map(str, command)))
    while process.poll() is None and not held.exists():
        time.sleep(0.01)
    return process, held


def _commit(images, out, verb):
    if verb == "consolidate":
        consolidate(out)
    elif (opened := begun(images, out)).finished is None:
        finish(images, opened)


@pytest.mark.parametrize("verb", ["mine", "consolidate"])
@pytest.mark.parametrize("killed", ["mine", "consolidate"])
def test_what_a_killed_commit_had_written_of_the_manifest_goes_with_a_commit_an_hour_later(
    images, photos, tmp_path, killed, verb
):
    out = tmp_path / "out"
    finish(images, begun(images, out))
    shutil.copy(photos / "coffee.jpg", images / "added.jpg")
    process, _ = _committing(images, out, killed, "dies")
    assert process.wait() == -signal.SIGKILL
    (left,) = out.glob("dataset.json.tmp-*")
    assert left.name in verify_dataset(out).unfinished
    os.utime(left, (0, time.time() - 2 * 3600))
    _commit(images, out, verb)
    assert not left.exists()
    _commit(images, out, "mine")
    report = verify_dataset(out, deep=True)
    assert (report.images, report.problems, report.unfinished) == (3, (), ())


def test_what_another_machine_may_still_write_of_the_manifest_is_left_to_it(images, tmp_path):
    # Over NFS the lock of a folder keeps nobody out but on the same machine.
    out = tmp_path / "out"
    finish(images, begun(images, out))
    written = temporary_name(out / "dataset.json")
    written.write_bytes(b"{")
    assert consolidate(out)
    assert written.read_bytes() == b"{"


def test_a_commit_that_lives_loses_nothing_to_one_that_waits_for_it(images, photos, tmp_path):
    out = tmp_path / "out"
    finish(images, begun(images, out))
    shutil.copy(photos / "coffee.jpg", images / "added.jpg")
    opened = begun(images, out)
    records = {**opened.done, **mined(images, opened, list(opened.pending))}
    process, held = _committing(images, out, "consolidate", "waits")
    (written,) = out.glob("dataset.json.tmp-*")
    second = threading.Thread(target=commit, args=(opened, records))
    second.start()
    second.join(2)
    seen = second.is_alive(), written.exists()
    held.unlink()
    assert (process.wait(), *seen) == (0, True, True)
    second.join(60)
    report = verify_dataset(out, deep=True)
    assert (report.images, report.problems, report.unfinished) == (3, (), ())


@pytest.mark.parametrize("name", ["plan.parquet.tmp-notes", "progress.tmp-job.json.old"])
def test_what_only_begins_like_a_name_of_ours_is_left_alone_wherever_it_lies(images, photos, tmp_path, name):
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    (out / name).write_text("dear diary")
    with pytest.raises(AlignDetError, match="is not empty and holds no mining job"):
        begun(images, out)
    begun(images, other)
    release(other)
    for folder in (other, other / layout.SHARDS):
        (folder / name).write_text("dear diary")
    finish(images, begun(images, other))
    assert len([path for path in tmp_path.rglob(name) if path.read_text() == "dear diary"]) == 3
    assert verify_dataset(other).unfinished == ()


def test_the_heartbeat_of_a_run_that_died_after_its_last_shard_is_taken_from_a_finished_dataset(
    images, tmp_path
):
    out = tmp_path / "out"
    finish(images, begun(images, out))
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    write_beat(out, {**this_process(), "pid": died.pid, "started": 1.0, "updated": time.time()})
    assert begun(images, out).finished is not None
    assert not (out / layout.HEARTBEAT).exists()


def test_a_dataset_that_grew_and_lost_its_manifest_is_no_job_that_was_stopped_before_images_came(
    images, photos, tmp_path
):
    # Its second shard has room, into which a job would have put the image that was added.
    out = tmp_path / "out"
    for name in ("third.jpg", "zz.jpg"):
        shutil.copy(photos / "coffee.jpg", images / name)
        finish(images, begun(images, out))
    (out / layout.MANIFEST).unlink()
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    shutil.copy(photos / "flower.jpg", images / "more.jpg")
    with pytest.raises(AlignDetError, match="belongs to another job"):
        begun(images, out)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(max_side=100)])
def test_a_plan_that_adds_images_to_another_dataset_is_not_gone_on_with(images, photos, tmp_path, recipe):
    # Two runs on a store that knows no locks: one writes it after the other has added images and committed them.
    out, other = tmp_path / "out", tmp_path / "other"
    finish(images, begun(images, out))
    finish(images, begun(images, other, recipe=recipe))
    grown = shutil.copytree(images, tmp_path / "grown")
    for name in ("xx.jpg", "yy.jpg"):
        shutil.copy(photos / "coffee.jpg", grown / name)
    begun(grown, other, recipe=recipe)
    if recipe == RECIPE:
        shutil.copy(photos / "coffee.jpg", images / "xx.jpg")
        finish(images, begun(images, out))
    shutil.copy(other / layout.APPEND, out / layout.APPEND)
    finish(grown, begun(grown, out))
    dataset = open_dataset(out)
    assert [record.uri for record in dataset] == ["cat.jpg", "china.jpg", "xx.jpg", "yy.jpg"]
    assert dataset.manifest.recipe == RECIPE
    assert verify_dataset(out, deep=True).problems == ()


def test_a_finished_dataset_of_other_libraries_is_complete_though_a_rejected_image_has_another_size(
    images, tmp_path
):
    out, said = tmp_path / "out", []
    (images / "broken.jpg").write_bytes(b"no image")
    finish(images, begun(images, out))
    manifest = read_manifest(out)
    write_model(out / layout.MANIFEST, manifest.model_copy(update={"versions": {"numpy": "1.0"}}))
    (images / "broken.jpg").write_bytes(b"something else")
    assert begun(images, out, said).finished is not None
    assert said == [
        "1 rejected images have another size than when they were listed: broken.jpg. --retry-rejected tries them again"
    ]


def test_a_plan_that_pyarrow_writes_otherwise_now_is_not_put_in_the_place_of_the_committed_one(
    images, photos, tmp_path, monkeypatch
):
    # Stopped while images that were added were committed; they are gone now, and pyarrow is another.
    out = tmp_path / "out"
    finish(images, begun(images, out))
    more = shutil.copytree(images, tmp_path / "more")
    shutil.copy(photos / "coffee.jpg", more / "added.jpg")
    begun(more, out)
    shutil.copy(out / layout.APPEND, out / layout.PLAN)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.name != layout.HEARTBEAT}
    monkeypatch.setitem(assemble._PACKING, "compression", "none")
    with pytest.raises(AlignDetError, match="perhaps for another version of pyarrow"):
        begun(images, out)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
