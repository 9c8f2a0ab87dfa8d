"""A source that is lost is no fault of its images; a machine with other libraries mines nothing."""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.executor import Fault
from pipeline.faults import fault_of
from pipeline.plan import ShardTask, make_plan, tasks
from pipeline.shard_task import Work, code_versions, mine_shard, probe_images
from pipeline.sources import FolderSource, SourceUnavailableError, open_source
from proposals.dataset.manifest import library_versions
from proposals.errors import AlignDetError
from proposals.recipe import Recipe

_RECIPE = Recipe(max_side=64)


@pytest.fixture
def mining(photos, tmp_path):
    """(folder of images, the task of its two images, what mines it)."""
    folder = tmp_path / "mount" / "images"
    folder.mkdir(parents=True)
    for name in ("cat.jpg", "china.jpg"):
        shutil.copy(photos / name, folder / name)
    (tmp_path / "out" / "shards").mkdir(parents=True)
    source = FolderSource(folder)
    (task,) = tasks(make_plan(source.entries(), 2))
    return folder, task, Work(source, tmp_path / "out", _RECIPE, "job", versions=library_versions())


def _lose(folder, emptied):
    """As an unmounted disk leaves the place where it was: gone, or ``emptied``."""
    shutil.rmtree(folder)
    if emptied:
        folder.mkdir()


@pytest.mark.parametrize("emptied", [False, True])
def test_a_folder_that_is_gone_fails_the_shard_and_rejects_no_image(mining, emptied):
    folder, task, work = mining
    _lose(folder, emptied)
    with pytest.raises(SourceUnavailableError, match="Is it mounted") as caught:
        mine_shard(task, work)
    assert fault_of(caught.value) is Fault.source
    assert not list(work.out.rglob("*.json"))


@pytest.mark.parametrize("gone", [["cat.jpg"], ["cat.jpg", "china.jpg"]])
def test_images_that_are_gone_are_rejected_even_if_they_are_all_of_their_shard(mining, gone):
    folder, task, work = mining
    (folder / "of_another_shard.jpg").touch()
    for name in gone:
        (folder / name).unlink()
    record = mine_shard(task, work)
    assert [(row.uri, row.reason) for row in record.rejected] == [(name, "missing") for name in gone]
    assert record.shard.images == 2 - len(gone)


def test_a_machine_with_other_libraries_writes_nothing_and_one_with_another_processor_does(mining):
    _, task, work = mining
    here = library_versions()
    other = Work(work.source, work.out, _RECIPE, "job", versions={**here, "numpy": "1.0"})
    with pytest.raises(AlignDetError, match=rf"has numpy {here['numpy']} instead of 1\.0") as caught:
        mine_shard(task, other)
    with pytest.raises(AlignDetError, match="has numpy"):
        probe_images(task, other)
    older = replace(other, versions={**code_versions(), "aligndet": "0.0.1"})
    with pytest.raises(AlignDetError, match=r"has aligndet .* instead of 0\.0\.1"):
        mine_shard(task, older)
    assert fault_of(caught.value) is Fault.versions
    assert not list(work.out.rglob("*.*"))
    mixed = Work(work.source, work.out, _RECIPE, "job", versions={**here, "opencv_dispatch": "AVX512_SKX"})
    assert mine_shard(task, mixed).shard.images == 2


@pytest.fixture
def listed_mining(mining, tmp_path):
    """The same of a list of absolute paths, whose third file was not there when it was listed."""
    folder, _, work = mining
    names = [str(folder / name) for name in ("cat.jpg", "china.jpg", "gone_before.jpg")]
    (tmp_path / "list.txt").write_text("\n".join(names))
    source = open_source(str(tmp_path / "list.txt"))
    (task,) = tasks(make_plan(source.entries(), 3))
    return folder, task, replace(work, source=source)


@pytest.mark.parametrize("emptied", [False, True])
def test_absolute_paths_below_a_lost_mount_are_no_missing_images(listed_mining, emptied):
    folder, task, work = listed_mining
    _lose(folder, emptied)
    with pytest.raises(SourceUnavailableError, match="Is it mounted"):
        mine_shard(task, work)


def test_absolute_paths_that_were_not_there_when_they_were_listed_are_missing(listed_mining):
    folder, task, work = listed_mining
    (folder / "china.jpg").unlink()
    record = mine_shard(task, work)
    assert [Path(row.uri).name for row in record.rejected] == ["china.jpg", "gone_before.jpg"]
    shutil.rmtree(folder)
    gone = ShardTask("00001", task.keys[2:], task.uris[2:], task.sizes[2:])
    assert [row.reason for row in mine_shard(gone, work).rejected] == ["missing"]


@pytest.fixture
def nested_mining(photos, tmp_path):
    """Makes what mines (a source of one image beside a nested disk that holds another): (that disk, task, work)."""
    disk = tmp_path / "images" / "disk"
    (disk / "deep").mkdir(parents=True)
    shutil.copy(photos / "cat.jpg", tmp_path / "images" / "cat.jpg")
    shutil.copy(photos / "china.jpg", disk / "deep" / "china.jpg")
    (tmp_path / "out" / "shards").mkdir(parents=True)

    def made(source):
        (task,) = tasks(make_plan(source.entries(), 2))
        return disk, task, Work(source, tmp_path / "out", _RECIPE, "job")

    return made


def _listed_by_name(images):
    (images.parent / "list.txt").write_text("cat.jpg\ndisk/deep/china.jpg\n")
    return open_source(str(images.parent / "list.txt"), image_root=str(images))


@pytest.mark.parametrize("opened", [FolderSource, _listed_by_name])
def test_a_disk_below_the_source_that_is_lost_rejects_no_image(nested_mining, tmp_path, opened):
    disk, task, work = nested_mining(opened(tmp_path / "images"))
    _lose(disk, emptied=True)
    with pytest.raises(
        SourceUnavailableError, match=r"images/disk, cannot be read: it is empty.*Is it mounted"
    ):
        mine_shard(task, work)


@pytest.mark.parametrize("opened", [FolderSource, _listed_by_name])
def test_images_of_a_folder_that_was_deleted_among_others_are_missing(nested_mining, tmp_path, opened):
    disk, task, work = nested_mining(opened(tmp_path / "images"))
    _lose(disk, emptied=False)
    assert [(row.uri, row.reason) for row in mine_shard(task, work).rejected] == [
        ("disk/deep/china.jpg", "missing")
    ]
    _lose(tmp_path / "images", emptied=False)
    with pytest.raises(SourceUnavailableError, match=r"images, cannot be read"):
        mine_shard(task, work)


def test_images_behind_a_linked_folder_that_leads_nowhere_are_not_missing(nested_mining, tmp_path):
    outside = tmp_path / "outside"
    (tmp_path / "images" / "disk").rename(outside)
    (tmp_path / "images" / "disk").symlink_to(outside)
    _, task, work = nested_mining(FolderSource(tmp_path / "images"))
    _lose(outside, emptied=False)
    with pytest.raises(SourceUnavailableError, match=r"images/disk, cannot be read"):
        mine_shard(task, work)


def test_links_to_images_of_a_disk_that_is_lost_reject_no_image(nested_mining, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("cat.jpg", "disk/deep/china.jpg"):
        (tmp_path / "links" / Path(name).name).symlink_to(tmp_path / "images" / name)
    disk, task, work = nested_mining(FolderSource(tmp_path / "links"))
    _lose(disk, emptied=True)
    with pytest.raises(SourceUnavailableError, match=r"images/disk/deep, cannot be read"):
        mine_shard(task, work)


def test_a_tar_that_is_gone_from_a_folder_with_others_is_missing_and_its_disk_is_not(nested_mining, tmp_path):
    images = tmp_path / "images"
    for name in ("a.tar", "disk/b.tar"):
        with tarfile.open(images / name, "w") as tar:
            tar.add(images / "cat.jpg", "cat.jpg")
    (images / "cat.jpg").unlink()
    disk, task, work = nested_mining(open_source(str(images), "webdataset"))
    (images / "a.tar").unlink()
    (images / "another.tar").touch()
    assert [row.reason for row in mine_shard(task, work).rejected] == ["missing"]
    _lose(disk, emptied=True)
    with pytest.raises(SourceUnavailableError, match=r"images/disk, cannot be read: it is empty"):
        mine_shard(task, work)
