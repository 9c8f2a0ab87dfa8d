"""Listing a folder and planning its shards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import make_plan, tasks
from pipeline.sources import FolderSource, SourceEntry, describe
from proposals.errors import AlignDetError
from proposals.images import ImageRejected

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


def test_one_image_listed_twice_is_refused():
    with pytest.raises(AlignDetError, match=r"'a\.jpg' has the same key"):
        make_plan([SourceEntry("a.jpg", 1), SourceEntry("a.jpg", 1)], 2)
