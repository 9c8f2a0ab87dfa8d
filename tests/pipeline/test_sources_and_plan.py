"""Listing a folder and planning its shards."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.plan
from pipeline.plan import ExtendedPlan, PlanFile, RetryPlan, make_plan, tasks
from pipeline.source_change import compare
from pipeline.sources import FolderSource, SourceEntry, describe
from pipeline.sources.opening import open_source
from proposals.dataset import assemble
from proposals.dataset.assemble import plan_bytes, plan_groups, write_plan
from proposals.dataset.identity import JobIdentity
from proposals.dataset.layout import key_of
from proposals.errors import AlignDetError
from proposals.images import ImageRejected
from proposals.recipe import Recipe

_URIS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), unique=True, max_size=40
)


def test_images_are_found_in_any_depth_and_order_is_fixed(tmp_path):
    for name in ("b/2.PNG", "b/10.jpg", "a.jpeg", "z.txt", ".hidden/x.webp", "c.tiff.bak"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    assert list(FolderSource(tmp_path).entries()) == [
        SourceEntry(uri, 3) for uri in (".hidden/x.webp", "a.jpeg", "b/10.jpg", "b/2.PNG")
    ]


def test_a_folder_with_the_name_of_an_image_is_listed_as_one_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "a.jpg" / "b.jpg").write_bytes(b"1")
    assert list(FolderSource(tmp_path).entries()) == [SourceEntry("a.jpg", -1), SourceEntry("a.jpg/b.jpg", 1)]


def test_a_list_may_begin_with_many_rows_without_a_name(tmp_path):
    rows = [",dog"] * 150
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, "cat.jpg,cat"]))
    entries = list(open_source(str(tmp_path / "list.csv")).entries())
    assert len(entries) == 151
    assert entries[-1] == SourceEntry("cat.jpg", -1)
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(AlignDetError, match="names an image"):
        list(open_source(str(tmp_path / "list.csv")).entries())


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").write_bytes(b"1")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere.jpg").symlink_to(tmp_path / "gone")
    source = FolderSource(tmp_path / "in")
    assert list(source.entries()) == [SourceEntry("link/x.jpg", 1), SourceEntry("nowhere.jpg", -1)]
    with pytest.raises(ImageRejected, match="missing"):
        source.read("nowhere.jpg")


def test_a_wrong_folder_is_a_users_error(tmp_path):
    with pytest.raises(AlignDetError, match="is not a folder"):
        list(FolderSource(tmp_path / "gone").entries())
    with pytest.raises(AlignDetError, match="holds no image"):
        list(FolderSource(tmp_path).entries())


def test_the_fingerprint_sees_names_and_sizes():
    entries = [SourceEntry("a.jpg", 1), SourceEntry("b.jpg", 2)]
    others = [entries[:1], [*entries, SourceEntry("c.jpg", 0)], [entries[0], SourceEntry("b.jpg", 3)]]
    prints = {describe("folder", listed).fingerprint for listed in [entries, *others]}
    assert len(prints) == 4


@given(_URIS, st.integers(1, 7))
def test_a_plan_holds_every_image_once_and_in_order(uris, per_shard):
    planned = list(tasks(make_plan([SourceEntry(uri, 1) for uri in uris], per_shard)))
    assert [uri for task in planned for uri in task.uris] == uris
    assert [task.name for task in planned] == [f"{i:05d}" for i in range(len(planned))]
    assert all(len(task) == per_shard for task in planned[:-1])
    assert all(0 < len(task) <= per_shard for task in planned)
    keys = [key for task in planned for key in task.keys]
    assert len(set(keys)) == len(uris)


def test_images_of_a_kind_that_is_not_read_are_rejected_and_not_passed_over(photos, tmp_path, mine_folder):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(photos / "cat.jpg", pictures)
    (pictures / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    out = mine_folder(pictures, tmp_path / "out", Recipe(max_side=64))
    (rejected,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert (rejected["uri"], rejected["reason"]) == ("phone.HEIC", "not_an_image")


def test_a_picture_of_a_kind_that_is_not_read_makes_no_folder_of_images(tmp_path):
    (tmp_path / "cover.heic").write_bytes(b"")
    (tmp_path / "a.tar").write_bytes(b"\0" * 1024)
    assert open_source(str(tmp_path)).kind == "webdataset"


@given(_URIS, st.lists(st.integers(0, 30)), st.integers(1, 7))
def test_an_image_listed_again_counts_once_where_it_came_first(uris, repeated, per_shard):
    entries = [SourceEntry(uri, 1) for uri in uris]
    again = [entries[place % len(entries)] for place in repeated if entries]
    plan = make_plan([*entries, *again], per_shard)
    once = make_plan(entries, per_shard)
    assert plan.again == len(again)
    assert list(tasks(plan)) == list(tasks(once))
    assert plan.source("list") == once.source("list")


def test_two_images_of_one_key_are_refused(monkeypatch):
    monkeypatch.setattr("pipeline.plan._hash", lambda uri: 1)
    monkeypatch.setattr("pipeline.plan.key_of", lambda uri: "k")
    with pytest.raises(AlignDetError, match=r"'b\.jpg' has the same key as 'a\.jpg'"):
        make_plan([SourceEntry("a.jpg", 1), SourceEntry("b.jpg", 1)], 2)


def _entries(sizes):
    return [SourceEntry(uri, size) for uri, size in sizes.items()]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(pipeline.plan, "_GROUP", 3)


def test_a_shard_may_begin_in_one_part_of_the_plan_and_end_in_another(small_parts):
    plan = make_plan([SourceEntry(f"{number}.jpg", number) for number in range(11)], 4)
    assert [len(part) for part in plan.parts()] == [3, 3, 3, 2]
    assert [[int(uri[:-4]) for uri in task.uris] for task in tasks(plan)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]
    assert (plan.images, plan.shards) == (11, 3)


def test_images_tried_again_share_shards_wherever_in_the_plan_they_were(small_parts):
    plan = make_plan([SourceEntry(f"{number}.jpg", 1) for number in range(11)], 4)
    keys = {uri: key for task in tasks(plan) for key, uri in zip(task.keys, task.uris, strict=True)}
    again = frozenset(keys[f"{number}.jpg"] for number in (0, 4, 5, 9, 10))
    retry = RetryPlan(plan, plan.shards, again, 2)
    found = [(task.name, [int(uri[:-4]) for uri in task.uris]) for task in tasks(retry)]
    shards = [[1, 2, 3], [6, 7], [8], [0, 4], [5, 9], [10]]
    assert found == [(f"{number:05d}", shard) for number, shard in enumerate(shards)]
    assert (retry.images, retry.shards) == (11, 6)


def test_images_tried_again_have_the_sizes_of_now_and_none_where_they_are_gone():
    plan = make_plan([SourceEntry(f"{number}.jpg", 10) for number in range(4)], 2)
    keys = frozenset(map(key_of, ("1.jpg", "2.jpg")))
    now = make_plan([SourceEntry(f"{number}.jpg", 20) for number in (0, 1, 3)], 2)
    found = [(task.uris, task.sizes) for task in tasks(RetryPlan(plan, plan.shards, keys, 2, now))]
    assert found == [(("0.jpg",), (10,)), (("3.jpg",), (10,)), (("1.jpg", "2.jpg"), (20, -1))]


def test_a_plan_streamed_to_disk_has_the_bytes_of_one_written_at_once(small_parts, monkeypatch, tmp_path):
    monkeypatch.setattr(assemble, "PLAN_GROUP", 50)
    entries = [SourceEntry(f"{number}.jpg", number) for number in range(70)]
    plan = make_plan(entries, 7)
    info = plan.source("folder")
    assert info == describe("folder", entries)
    identity = JobIdentity(recipe=Recipe(), source=info, images_per_shard=7, versions={})
    write_plan(tmp_path / "plan.parquet", plan.parts(), identity)
    assert (tmp_path / "plan.parquet").read_bytes() == plan_bytes(pa.concat_tables(plan.parts()), identity)
    assert list(tasks(PlanFile(tmp_path / "plan.parquet"))) == list(tasks(plan))
    assert [len(part) for part in plan_groups(tmp_path / "plan.parquet")] == [50, 20]


_LISTED = st.dictionaries(
    st.sampled_from([f"{letter}.jpg" for letter in "abcdefgh"]), st.integers(-1, 1), max_size=8
)


@given(_LISTED, _LISTED, st.sets(st.sampled_from([f"{letter}.jpg" for letter in "abcdefgh"])))
def test_what_changed_in_a_source_is_what_sets_of_names_say(before, now, rejected):
    keys = frozenset(map(key_of, rejected))
    change = compare(make_plan(_entries(before), 3), make_plan(_entries(now), 3), keys)
    assert [uri for uri, new in zip(now, change.added, strict=True) if new] == [
        uri for uri in now if uri not in before
    ]
    removed = [uri for uri in before if uri not in now]
    resized = [uri for uri in before if uri in now and now[uri] != before[uri]]
    # A source that tells no size at all has not lost one.
    tells = any(size >= 0 for size in now.values())
    gone_or_other = [uri for uri in resized if before[uri] >= 0 and (now[uri] >= 0 or tells)]
    changed = [uri for uri in gone_or_other if uri not in rejected]
    retriable = [uri for uri in resized if now[uri] >= 0 and uri in rejected]
    assert change.rejected == (len(retriable), tuple(retriable[:5]))
    assert (change.advice() is not None) == bool(retriable)
    assert change.removed == (len(removed), tuple(removed[:5]))
    assert change.changed == (len(changed), tuple(changed[:5]))
    for uris, line in ((removed, "images removed: "), (changed, "images changed in size: ")):
        more = [f"{len(uris)} {line}{', '.join(uris[:5])}" + f" and {len(uris) - 5} more" * (len(uris) > 5)]
        assert [told for told in change.refusals() if line in told] == more * bool(uris)


@given(_LISTED, _LISTED, st.integers(1, 4))
def test_an_extended_plan_keeps_old_shards_and_puts_new_images_behind_them(before, now, per_shard):
    old = make_plan(_entries(before), 3)
    listed = make_plan(_entries({**before, **now}), 5)
    extended = ExtendedPlan(old, listed, compare(old, listed, frozenset()).added, per_shard)
    planned = list(tasks(extended))
    assert planned[: old.shards] == list(tasks(old))
    fresh = [uri for uri in now if uri not in before]
    assert [uri for task in planned[old.shards :] for uri in task.uris] == fresh
    assert all(len(task) == per_shard for task in planned[old.shards : -1])
    assert [task.name for task in planned] == [f"{number:05d}" for number in range(extended.shards)]
    assert extended.images == len(before) + len(fresh)
