"""A job that was stopped: what it began is finished first, and what is not proven done is mined again."""

import os
import shutil

import pytest

from pipeline.claim import release
from proposals.dataset import layout, open_dataset
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
