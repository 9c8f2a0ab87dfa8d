"""`--retry-rejected`: what was rejected is tried again in shards of its own, all or nothing."""

import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline import commit as committing
from pipeline.begin import begin
from pipeline.claim import release
from pipeline.commit import commit
from pipeline.image_records import Refusal
from pipeline.job import JobOptions, run_job
from pipeline.plan import make_plan
from pipeline.repair import repair_dataset
from pipeline.retry import abandon, begin_retry
from pipeline.shard_task import Work, mine_shard
from pipeline.sources import FolderSource
from proposals.dataset import layout, open_dataset
from proposals.dataset.consolidated import consolidate
from proposals.dataset.manifest import read_manifest
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe
from tests.pipeline.jobs_by_hand import identity_of
from tests.pipeline.nobody import Nobody

_RECIPE = Recipe(max_side=100)
_WRONGED = ("astronaut.jpg", "cat.jpg", "more/rocket.jpg")
_REFUSAL = Refusal.without_traceback("propose", "timeout", "no result within the time limit")


@pytest.fixture(scope="module")
def source(photos, tmp_path_factory):
    folder = shutil.copytree(photos, tmp_path_factory.mktemp("retry") / "in")
    (folder / "torn.jpg").write_bytes((photos / "cat.jpg").read_bytes()[:900])
    return FolderSource(folder)


@pytest.fixture(scope="module")
def made(source, mine_folder, tmp_path_factory):
    """Nine images in shards of one, four of them rejected, three of those without cause."""
    quarantine = {layout.key_of(uri): _REFUSAL for uri in _WRONGED}
    return mine_folder(
        source.root, tmp_path_factory.mktemp("retry") / "out", _RECIPE, 1, quarantine=quarantine
    )


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def _finish(source, opened):
    work = Work(source, opened.out, _RECIPE, opened.identity.fingerprint())
    fresh = {task.name: mine_shard(task, work) for task in opened.pending}
    commit(opened, {**opened.done, **fresh})


def _job(source):
    """(plan, identity) of `aligndet mine` with what ``source`` lists now."""
    plan = make_plan(source.entries(), 1)
    return plan, identity_of(plan, _RECIPE, 1)


def _rejected(out):
    return {row["uri"]: row["reason"] for row in pq.read_table(out / "rejected.parquet").to_pylist()}


def _is_right(source, out, whole):
    assert not verify_dataset(out, deep=True).problems
    assert not verify_dataset(out).unfinished
    assert _rejected(out) == {"torn.jpg": "truncated"}
    found = {record.uri: record.boxes.tolist() for record in open_dataset(out)}
    assert found == {record.uri: record.boxes.tolist() for record in open_dataset(whole)}


@pytest.fixture(scope="module")
def whole(source, mine_folder, tmp_path_factory):
    return mine_folder(source.root, tmp_path_factory.mktemp("retry") / "whole", _RECIPE, 1)


def test_those_that_pass_leave_the_rejected_and_old_files_are_not_touched(source, out, whole):
    data = [path for path in out.glob("shards/*") if path.suffix != ".json"]
    before = {path: path.stat().st_mtime_ns for path in data}
    assert len(_rejected(out)) == 4
    outcome = run_job(source, out, _RECIPE, JobOptions(1, workers=1, retry_rejected=True), Nobody())
    assert (outcome.mined.images, outcome.mined.rejected) == (3, 1)
    assert len(outcome.manifest.shards) == 13
    assert {path: path.stat().st_mtime_ns for path in data} == before
    _is_right(source, out, whole)
    # A rebuilt manifest, and images added later, know of the shards that lost their only image.
    manifest = (out / layout.MANIFEST).read_bytes()
    (out / layout.MANIFEST).unlink()
    assert not repair_dataset(out, [source.root], 1, lambda _: None).problems
    assert (out / layout.MANIFEST).read_bytes() == manifest


def test_images_can_be_added_after_a_retry(source, out, tmp_path):
    _finish(source, begin_retry(out, _RECIPE, source))
    more = FolderSource(shutil.copytree(source.root, tmp_path / "more"))
    shutil.copy(more.root / "cat.jpg", more.root / "also.jpg")
    _finish(more, begin(out, *_job(more)))
    assert "also.jpg" in {record.uri for record in open_dataset(out)}
    assert not verify_dataset(out, deep=True).problems


def test_when_none_passes_not_a_byte_changes(source, out, content):
    _finish(source, begin_retry(out, _RECIPE, source))
    before = content(out)
    outcome = run_job(source, out, _RECIPE, JobOptions(1, workers=1, retry_rejected=True), Nobody())
    assert (outcome.mined.images, outcome.mined.rejected) == (0, 1)
    assert content(out) == before
    assert not verify_dataset(out, deep=True).problems


def test_after_a_retry_in_which_a_changed_image_did_not_pass_the_dataset_is_complete(
    made, photos, tmp_path, content
):
    out = shutil.copytree(made, tmp_path / "out")
    folder = FolderSource(shutil.copytree(photos, tmp_path / "in"))
    data = (photos / "cat.jpg").read_bytes()
    (folder.root / "torn.jpg").write_bytes(data[:900])
    _finish(folder, begin_retry(out, _RECIPE, folder))
    before = content(out)
    (folder.root / "torn.jpg").write_bytes(data[:1000])
    run_job(folder, out, _RECIPE, JobOptions(1, workers=1, retry_rejected=True), Nobody())
    assert run_job(folder, out, _RECIPE, JobOptions(1, workers=1), Nobody()).already_complete
    assert content(out) == before
    shutil.copy(photos / "cat.jpg", folder.root / "added.jpg")
    _finish(folder, begin(out, *_job(folder)))
    assert begin(out, *_job(folder)).finished
    assert not verify_dataset(out, deep=True).problems


@pytest.mark.parametrize("step", ["begun", "mined", "plan", "records", "manifest"])
def test_a_retry_that_was_stopped_is_completed_by_the_next_run(
    source, out, whole, content, step, monkeypatch
):
    opened = begin_retry(out, _RECIPE, source)
    if step != "begun":
        broken = {"plan": "copy_atomically", "records": "write_model", "manifest": "assemble"}
        names = {"mined": "remove_own_leftovers"} | broken

        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(committing, names[step], stop)
            with pytest.raises(KeyboardInterrupt):
                _finish(source, opened)
    plan, identity = _job(source)
    again = begin(out, plan, identity)
    assert len(again.pending) == (4 if step == "begun" else 0)
    _finish(source, again)
    _is_right(source, out, whole)
    assert begin(out, plan, identity).finished == read_manifest(out)


def test_a_retry_that_was_stopped_is_completed_though_images_came(source, out, whole, tmp_path):
    begin_retry(out, _RECIPE, source)
    release(out)
    grown = FolderSource(shutil.copytree(source.root, tmp_path / "grown"))
    shutil.copy(grown.root / "cat.jpg", grown.root / "zz.jpg")
    said = []
    _finish(source, begin(out, *_job(grown), said.append))
    assert said[0].startswith("1 images came since this job began")
    _is_right(source, out, whole)
    (grown.root / "cat.jpg").unlink()
    begin_retry(out, _RECIPE, source)
    release(out)
    with pytest.raises(AlignDetError, match=r"1 images removed: cat\.jpg"):
        begin(out, *_job(grown))


def test_a_retry_that_another_one_overtook_commits_nothing(source, out, content):
    overtaken = begin_retry(out, _RECIPE, source)
    work = Work(source, out, _RECIPE, overtaken.identity.fingerprint())
    mined = {task.name: mine_shard(task, work) for task in overtaken.pending}
    _finish(source, begin_retry(out, _RECIPE, source))
    # A third one tries what is still rejected: again a plan of the same job is there, of more shards.
    third = begin_retry(out, _RECIPE, source)
    before = content(out)
    with pytest.raises(AlignDetError, match="another run took over"):
        commit(overtaken, {**overtaken.done, **mined})
    assert content(out) == before
    _finish(source, third)
    assert not verify_dataset(out, deep=True).problems


def test_another_recipe_and_an_unfinished_job_are_refused(source, out):
    with pytest.raises(AlignDetError, match=r"recipe\.max_side: 100 there, 64 here"):
        begin_retry(out, Recipe(max_side=64), source)
    (out / layout.MANIFEST).unlink()
    with pytest.raises(AlignDetError, match="in progress"):
        begin_retry(out, _RECIPE, source)


def test_images_that_stay_where_they_are_are_tried_again_there(source, photos, tmp_path):
    out, elsewhere = tmp_path / "out", shutil.copytree(source.root, tmp_path / "elsewhere")
    plan, identity = _job(source)
    identity = identity.model_copy(update={"images": source.images})
    opened = begin(out, plan, identity)
    work = Work(source, out, _RECIPE, identity.fingerprint(), embed=False)
    quarantine = {layout.key_of(_WRONGED[0]): _REFUSAL}
    commit(opened, {task.name: mine_shard(task, work, quarantine=quarantine) for task in opened.pending})
    with pytest.raises(AlignDetError, match=r"images.root: .* there, .*elsewhere here"):
        begin_retry(out, _RECIPE, FolderSource(elsewhere))
    assert len(begin_retry(out, _RECIPE, source).pending) > 0


def test_a_dataset_without_rejected_images_is_left_alone(photos, mine_folder, tmp_path):
    out = mine_folder(photos, tmp_path / "out", _RECIPE)
    assert begin_retry(out, _RECIPE, FolderSource(photos)).finished is not None


def _tried(source, out):
    """A retry with the records of all of its shards, not yet committed."""
    opened = begin_retry(out, _RECIPE, source)
    work = Work(source, out, _RECIPE, opened.identity.fingerprint())
    return opened, {**opened.done, **{task.name: mine_shard(task, work) for task in opened.pending}}


def test_a_retry_that_is_given_up_leaves_the_dataset_as_it_was_and_to_others(source, out, content):
    _finish(source, begin_retry(out, _RECIPE, source))
    before, files = content(out), sorted(out.rglob("*"))
    abandon(*_tried(source, out))
    assert content(out) == before
    assert sorted(out.rglob("*")) == files  # records among them, and no heartbeat


def test_a_retry_in_which_an_image_passed_cannot_be_given_up(source, out, content):
    opened, records = _tried(source, out)
    before = content(out)
    with pytest.raises(ValueError, match="have images"):
        abandon(opened, records)
    assert content(out) == before


def test_a_retry_finishes_what_a_run_had_left_to_do_that_died_after_its_commit(
    source, out, tmp_path, monkeypatch
):
    _finish(source, begin_retry(out, _RECIPE, source))
    consolidate(out)
    more = FolderSource(shutil.copytree(source.root, tmp_path / "more"))
    shutil.copy(more.root / "cat.jpg", more.root / "also.jpg")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(committing, "remove_tree", stop)
        with pytest.raises(KeyboardInterrupt):
            _finish(more, begin(out, *_job(more)))
    begin_retry(out, _RECIPE, more)
    assert not (out / layout.CONSOLIDATED).exists()


@pytest.fixture
def repaired(source, photos, tmp_path):
    """The same source, in which the torn image was replaced by a whole one of another size."""
    folder = shutil.copytree(source.root, tmp_path / "repaired")
    shutil.copy(photos / "cat.jpg", folder / "torn.jpg")
    return FolderSource(folder)


def test_after_a_repair_of_the_source_the_dataset_is_complete_and_can_grow(repaired, out, photos):
    said = []
    assert begin(out, *_job(repaired), said.append).finished
    assert "torn.jpg. --retry-rejected tries them again" in said[0]
    _finish(repaired, begin_retry(out, _RECIPE, repaired))
    assert not _rejected(out)
    assert not verify_dataset(out, deep=True).problems
    assert begin(out, *_job(repaired)).finished == read_manifest(out)
    (out / layout.PLAN).unlink()
    assert not repair_dataset(out, [repaired.root], 1, lambda _: None).problems
    shutil.copy(photos / "cat.jpg", repaired.root / "also.jpg")
    _finish(repaired, begin(out, *_job(repaired)))
    assert read_manifest(out).source == make_plan(repaired.entries(), 1).source("folder")
    assert len(open_dataset(out)) == 10
    assert not verify_dataset(out, deep=True).problems


@pytest.mark.parametrize("option", [True, False])
def test_a_repair_between_two_runs_of_a_retry_is_seen(source, repaired, out, option):
    begin_retry(out, _RECIPE, source)
    again = begin_retry(out, _RECIPE, repaired) if option else begin(out, *_job(repaired))
    _finish(repaired, again)
    assert not _rejected(out)
    assert begin(out, *_job(repaired)).finished is not None


def test_a_list_in_another_order_names_the_same_images(source, out):
    class Backwards(FolderSource):
        def entries(self):
            return reversed(list(super().entries()))

    before = (out / layout.MANIFEST).read_bytes()
    assert begin(out, *_job(Backwards(source.root))).finished is not None
    assert (out / layout.MANIFEST).read_bytes() == before
    assert not verify_dataset(out).unfinished


def test_an_image_that_is_replaced_while_the_job_runs_is_told_and_keeps_no_one_from_going_on(
    photos, tmp_path
):
    source = FolderSource(shutil.copytree(photos, tmp_path / "in"))
    opened = begin(tmp_path / "out", *_job(source))
    shutil.copy(photos / "astronaut.jpg", source.root / "cat.jpg")
    _finish(source, opened)
    before, now = ((folder / "cat.jpg").stat().st_size for folder in (photos, source.root))
    (row,) = pq.read_table(opened.out / "rejected.parquet").to_pylist()
    assert (row["uri"], row["reason"]) == ("cat.jpg", "changed")
    assert row["detail"] == f"{before} bytes when it was listed, {now} when it was read"
    run_job(source, opened.out, _RECIPE, JobOptions(1, workers=1, retry_rejected=True), Nobody())
    assert not _rejected(opened.out)
    assert run_job(source, opened.out, _RECIPE, JobOptions(1, workers=1), Nobody()).already_complete


def test_an_image_that_was_committed_though_it_had_changed_since_it_was_listed_is_mined_again(
    photos, tmp_path
):
    source = FolderSource(shutil.copytree(photos, tmp_path / "in"))
    opened = begin(tmp_path / "out", *_job(source))
    shutil.copy(photos / "astronaut.jpg", source.root / "cat.jpg")
    # As of a version that did not compare sizes.
    work = Work(source, opened.out, _RECIPE, opened.identity.fingerprint())
    commit(opened, {task.name: mine_shard(replace(task, sizes=()), work) for task in opened.pending})
    assert not _rejected(opened.out)
    before = {path.name: path.read_bytes() for path in opened.out.glob("shards/*.tar")}
    for name in before:
        (opened.out / layout.SHARDS / name).unlink()
    assert not repair_dataset(opened.out, [source.root], 1, lambda _: None).problems
    assert {path.name: path.read_bytes() for path in opened.out.glob("shards/*.tar")} == before
