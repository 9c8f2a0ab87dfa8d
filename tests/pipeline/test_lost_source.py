"""A source that is lost is no fault of its images; a machine with other libraries mines nothing."""

import shutil
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
