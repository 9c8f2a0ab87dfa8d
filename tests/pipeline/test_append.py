"""Mining into a finished dataset: added images get new shards, everything committed stays as it was."""

import shutil

import pyarrow.parquet as pq
import pytest

from pipeline import commit
from pipeline.begin import begin
from pipeline.claim import release
from pipeline.plan import PlanFile, make_plan
from pipeline.source_change import compare
from pipeline.sources import FolderSource, SourceEntry
from proposals.dataset import layout, open_dataset
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import temporary_name
from proposals.dataset.manifest import library_versions, read_manifest
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe
from tests.pipeline.jobs_by_hand import identity_of

_SMALL = Recipe(max_side=64)
_FIRST = ("astronaut.jpg", "cat.jpg", "china.jpg", "more/rocket.jpg")


@pytest.fixture
def images(photos, tmp_path):
    """Four photographs and a broken file; `grown` adds the others."""
    for name in _FIRST:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, tmp_path / "in" / name)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "in"


@pytest.fixture
def grow(photos):
    def add(images):
        for path in photos.rglob("*.jpg"):
            target = images / path.relative_to(photos)
            if not target.exists():
                shutil.copy(path, target)
        (images / "also_broken.jpg").write_bytes(b"no image either")

    return add


def _times(root, skip=()):
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in skip]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


_REPLACED = (layout.MANIFEST, layout.PLAN, layout.REJECTED)


def test_added_images_get_new_shards_and_old_files_stay(images, grow, tmp_path, mine_folder):
    out = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    old = [record.uri for record in open_dataset(out)]
    before = _times(out, _REPLACED)
    grow(images)
    assert mine_folder(images, out, _SMALL, images_per_shard=2) == out
    now = open_dataset(out)
    uris = [record.uri for record in now]
    assert uris[: len(old)] == old
    assert set(uris) == {path.relative_to(images).as_posix() for path in images.rglob("*.jpg")} - {
        "broken.jpg",
        "also_broken.jpg",
    }
    assert now.shard_sizes.tolist() == [1, 2, 1, 1, 2, 1]
    assert {path: value for path, value in _times(out, _REPLACED).items() if path in before} == before
    assert now.manifest.totals.rejected == 2
    rejected = pq.read_table(out / layout.REJECTED).column("uri").to_pylist()
    assert rejected == ["broken.jpg", "also_broken.jpg"]
    assert verify_dataset(out, deep=True).problems == ()
    whole = _times(out)
    mine_folder(images, out, _SMALL, images_per_shard=2)
    assert _times(out) == whole


def test_what_a_killed_run_had_half_written_is_gone_and_what_others_write_stays(
    images, grow, tmp_path, mine_folder
):
    out = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    names = ("plan.parquet", "append.parquet", "rejected.parquet", "shards/00001.tar", "clusters.json")
    for name in names:
        temporary_name(out / name).write_bytes(b"half")
    grow(images)
    mine_folder(images, out, _SMALL, images_per_shard=2)
    assert [path.name.partition(".tmp-")[0] for path in out.rglob("*.tmp-*")] == ["clusters.json"]


def test_it_can_grow_again_and_be_repaired(images, grow, photos, tmp_path, mine_folder):
    from pipeline.repair import repair_dataset

    out = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    grow(images)
    mine_folder(images, out, _SMALL, images_per_shard=2)
    shutil.copy(photos / "cat.jpg", images / "aaa.jpg")
    mine_folder(images, out, _SMALL, images_per_shard=2)
    assert [record.uri for record in open_dataset(out)][-1] == "aaa.jpg"
    for file in (layout.PLAN, "shards/00004.tar"):
        (out / file).write_bytes(b"damaged" + (out / file).read_bytes()[7:])
        assert repair_dataset(out, [images], 1, lambda _: None).problems == ()


def test_removed_and_changed_images_are_refused(images, grow, tmp_path, mine_folder):
    out = mine_folder(images, tmp_path / "out", _SMALL)
    before = _times(out)
    grow(images)
    (images / "cat.jpg").unlink()
    (images / "china.jpg").write_bytes(b"something else")
    with pytest.raises(AlignDetError) as caught:
        mine_folder(images, out, _SMALL)
    assert "1 images removed: cat.jpg" in str(caught.value)
    assert "1 images changed in size: china.jpg" in str(caught.value)
    assert _times(out) == before


def test_a_changed_recipe_is_refused_field_by_field(images, grow, tmp_path, mine_folder):
    out = mine_folder(images, tmp_path / "out", _SMALL)
    before = _times(out)
    grow(images)
    with pytest.raises(AlignDetError) as caught:
        mine_folder(images, out, Recipe(max_side=128, seed=3))
    for line in (
        "recipe.max_side: 64 there, 128 here",
        "recipe.seed: 0 there, 3 here",
        "source.images: 5 there",
    ):
        assert line in str(caught.value)
    assert _times(out) == before


def test_nothing_is_added_to_a_damaged_dataset(images, grow, tmp_path, mine_folder):
    out = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    shutil.copy(layout.record_path(out, "00000"), layout.record_path(out, "00001"))
    grow(images)
    before = _times(out)
    with pytest.raises(AlignDetError, match=r"shard 00001 .* is damaged: its record"):
        mine_folder(images, out, _SMALL, images_per_shard=2)
    assert _times(out) == before


def test_a_dataset_of_rejects_only_can_grow(images, grow, tmp_path, mine_folder):
    for name in _FIRST:
        (images / name).unlink()
    out = mine_folder(images, tmp_path / "out", _SMALL)
    assert verify_dataset(out, deep=True).problems == ()
    grow(images)
    mine_folder(images, out, _SMALL)
    assert len(open_dataset(out)) == 8
    assert verify_dataset(out, deep=True).problems == ()


def test_a_driver_with_another_cpu_goes_on(images, grow, tmp_path, mine_folder, monkeypatch):
    """Boxes do not depend on it, and the machine that replaces a lost one is often of another kind."""
    versions = library_versions()
    out = mine_folder(images, tmp_path / "out", _SMALL)
    whole = (out / layout.MANIFEST).read_bytes()
    (out / layout.MANIFEST).unlink()
    (out / layout.SHARDS / "00001.json").unlink()
    monkeypatch.setattr("tests.conftest.library_versions", lambda: {**versions, "opencv_dispatch": "another"})
    mine_folder(images, out, _SMALL)
    assert (out / layout.MANIFEST).read_bytes() == whole
    grow(images)
    mine_folder(images, out, _SMALL)
    assert verify_dataset(out, deep=True).problems == ()
    assert read_manifest(out).versions == versions


def test_other_library_versions_are_refused(images, grow, tmp_path, mine_folder):
    from proposals.dataset.manifest import write_model

    out = mine_folder(images, tmp_path / "out", _SMALL)
    manifest = read_manifest(out)
    write_model(out / layout.MANIFEST, manifest.model_copy(update={"versions": {"numpy": "1.0"}}))
    grow(images)
    with pytest.raises(AlignDetError, match=r"versions\.numpy: 1\.0 there"):
        mine_folder(images, out, _SMALL)


def test_an_append_stopped_at_any_point_keeps_the_old_dataset_and_completes(
    images, grow, tmp_path, mine_folder, content
):
    undisturbed = mine_folder(images, tmp_path / "whole", _SMALL, images_per_shard=2)
    stopped = shutil.copytree(undisturbed, tmp_path / "stopped")
    old = (stopped / layout.MANIFEST).read_bytes()
    grow(images)
    mine_folder(images, undisturbed, _SMALL, images_per_shard=2)
    # Every state in which a kill can leave the folder: so many of these files have been written, in this order.
    written = [
        *(f"shards/{number:05d}.{kind}" for number in (3, 4, 5) for kind in ("tar", "parquet", "json")),
        layout.PLAN,
        layout.REJECTED,
    ]
    for count in range(len(written) + 1):
        root = shutil.copytree(stopped, tmp_path / f"at_{count}")
        shutil.copy(undisturbed / layout.PLAN, root / layout.APPEND)
        for file in written[:count]:
            if (undisturbed / file).exists():
                shutil.copy(undisturbed / file, root / file)
        assert (root / layout.MANIFEST).read_bytes() == old
        assert len(open_dataset(root)) == 4
        assert len(open_dataset(root)[3].boxes)
        if count <= 9:
            assert verify_dataset(root, deep=True).problems == ()
        mine_folder(images, root, _SMALL, images_per_shard=2)
        assert content(root) == content(undisturbed)


@pytest.mark.parametrize("step", ["remove_tree", "remove_stale_clusters"])
def test_a_run_that_dies_after_its_commit_is_tidied_by_the_next(
    images, grow, tmp_path, mine_folder, content, step, monkeypatch
):
    undisturbed = mine_folder(images, tmp_path / "whole", _SMALL, images_per_shard=2)
    root = shutil.copytree(undisturbed, tmp_path / "out")
    consolidate(root)
    grow(images)
    mine_folder(images, undisturbed, _SMALL, images_per_shard=2)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(commit, step, stop)
        with pytest.raises(KeyboardInterrupt):
            mine_folder(images, root, _SMALL, images_per_shard=2)
    assert (root / layout.MANIFEST).read_bytes() == (undisturbed / layout.MANIFEST).read_bytes()
    mine_folder(images, root, _SMALL, images_per_shard=2)
    # Not tried again either, as a retry's plan would have them: its identity is the dataset's, too.
    assert content(root) == content(undisturbed)
    assert not verify_dataset(root, deep=True).problems


def test_an_abandoned_append_of_other_images_is_forgotten(images, grow, tmp_path, mine_folder, content):
    root = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    grow(images)
    other = shutil.copytree(root, tmp_path / "other")
    mine_folder(images, other, _SMALL, images_per_shard=2)
    for file in ("shards/00005.tar", "shards/00005.json"):
        shutil.copy(other / file, root / file)
    shutil.copy(other / layout.PLAN, root / layout.APPEND)
    for name in ("flower.jpg", "coffee.jpg", "also_broken.jpg"):
        (images / name).unlink()
    mine_folder(images, root, _SMALL, images_per_shard=2)
    assert len(open_dataset(root).manifest.shards) == 4
    assert verify_dataset(root, deep=True).problems == ()


def test_a_killed_append_of_the_real_command(images, grow, tmp_path, start, mine_folder):
    options = ("--images-per-shard", "1", "--max-side", "64", "--workers", "1")
    mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=1)
    manifest = (tmp_path / "out" / layout.MANIFEST).read_bytes()
    grow(images)
    mining = start(images, tmp_path / "out", *options)
    mining.wait_for_shards(6)
    mining.process.kill()
    mining.wait()
    assert (tmp_path / "out" / layout.MANIFEST).read_bytes() == manifest
    assert len(open_dataset(tmp_path / "out")) == 4
    killed = {path.name for path in (tmp_path / "out" / "shards").glob("*.json")}
    assert 5 < len(killed) <= 10
    mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=1)
    assert open_dataset(tmp_path / "out").manifest.source.images == 10
    assert verify_dataset(tmp_path / "out", deep=True).problems == ()


def test_images_that_come_while_others_are_added_wait_for_the_next_run(
    images, grow, tmp_path, mine_folder, photos
):
    root = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    grow(images)
    whole = shutil.copytree(root, tmp_path / "whole")
    mine_folder(images, whole, _SMALL, images_per_shard=2)
    # Stopped when two of the three new shards were done.
    shutil.copy(whole / layout.PLAN, root / layout.APPEND)
    for number in (3, 4):
        for file in (whole / "shards").glob(f"{number:05d}.*"):
            shutil.copy(file, root / "shards" / file.name)
    done = _times(root / "shards")
    shutil.copy(photos / "cat.jpg", images / "aaa.jpg")
    plan, identity = _listed(images)
    said = []
    opened = begin(root, plan, identity, said.append)
    release(root)
    assert [task.name for task in opened.pending] == ["00005"]
    assert said == [
        "1 images came since this job began: those it began with are finished now, and the same command adds the "
        "others then"
    ]
    mine_folder(images, root, _SMALL, images_per_shard=2)
    assert {path: value for path, value in _times(root / "shards").items() if path in done} == done
    assert (root / layout.MANIFEST).read_bytes() == (whole / layout.MANIFEST).read_bytes()
    mine_folder(images, root, _SMALL, images_per_shard=2)
    assert [record.uri for record in open_dataset(root)][-1] == "aaa.jpg"
    assert verify_dataset(root, deep=True).problems == ()


def _listed(images):
    source = FolderSource(images)
    plan = make_plan(source.entries(), 2)
    return plan, identity_of(plan, _SMALL, 2, source.kind)


def test_an_image_whose_size_was_not_known_is_not_changed_when_it_is_there(
    images, tmp_path, mine_folder, photos
):
    # A link to nowhere when the job began; the job was stopped, and what it leads to was brought.
    (images / "later.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    begun = begin(tmp_path / "out", *_listed(images))
    release(begun.out)
    shutil.copy(photos / "cat.jpg", tmp_path / "elsewhere.jpg")
    out = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    assert "later.jpg" in [record.uri for record in open_dataset(out)]
    # Of one whose size was known nothing is left but its name: it is gone.
    (images / "cat.jpg").rename(tmp_path / "cat.jpg")
    (images / "cat.jpg").symlink_to(tmp_path / "nowhere.jpg")
    shutil.copy(photos / "cat.jpg", images / "one_more.jpg")
    with pytest.raises(AlignDetError, match=r"1 images changed in size: cat\.jpg"):
        begin(out, *_listed(images))
    # And known before, not now: as where the root becomes a store's that tells no sizes.
    grown = [SourceEntry(entry.uri, -1) for entry in FolderSource(images).entries()]
    change = compare(PlanFile(out / layout.PLAN), make_plan(grown, 2), ())
    assert (change.refusals(), change.advice()) == ([], None)


@pytest.mark.parametrize("committing", [(), (layout.PLAN,), (layout.PLAN, layout.REJECTED)])
def test_of_images_that_are_gone_again_nothing_stays(
    images, grow, tmp_path, mine_folder, content, committing
):
    root = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    before = content(root)
    grown = shutil.copytree(root, tmp_path / "grown")
    more = shutil.copytree(images, tmp_path / "more")
    grow(more)
    mine_folder(more, grown, _SMALL, images_per_shard=2)
    # As a kill leaves it in the middle of adding, and while it commits.
    for file in ("shards/00003.tar", "shards/00003.parquet", "shards/00003.json"):
        shutil.copy(grown / file, root / file)
    shutil.copy(grown / layout.PLAN, root / layout.APPEND)
    for file in committing:
        shutil.copy(grown / file, root / file)
    mine_folder(images, root, _SMALL, images_per_shard=2)
    assert content(root) == before
    assert verify_dataset(root, deep=True).problems == ()


def test_a_grown_dataset_without_its_manifest_is_not_mined_as_if_it_were_new(
    images, grow, tmp_path, mine_folder, content
):
    from pipeline.repair import repair_dataset

    root = mine_folder(images, tmp_path / "out", _SMALL, images_per_shard=2)
    grow(images)
    mine_folder(images, root, _SMALL, images_per_shard=2)
    before = content(root)
    (root / layout.MANIFEST).unlink()
    with pytest.raises(AlignDetError, match=r"images were added to.* --repair"):
        mine_folder(images, root, _SMALL, images_per_shard=2)
    assert repair_dataset(root, [images], 1, lambda _: None).problems == ()
    assert content(root) == before
