"""Writing, locking and listing files: what a crash, another process or a stranger's file may find or do."""

import contextlib
import multiprocessing
import os
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from proposals.dataset.files import (
    alone_with,
    copy_atomically,
    file_sha256,
    files_below,
    names_in,
    open_plain,
    paths_in,
    publish_all,
    read_range,
    remove_leftovers,
    remove_tree,
    size_of,
    sizes_in,
    temporary_name,
    write_atomically,
)
from proposals.dataset.layout import TEMPORARY_MARK
from proposals.errors import AlignDetError, DeniedError
from proposals.paths import as_path


@pytest.fixture
def steps(monkeypatch):
    """What the system is asked for, in order: a flush of content or folder by its inode, and a name that is given."""
    asked, fsync, rename = [], os.fsync, os.replace

    def flushed(descriptor):
        asked.append(("flush", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def renamed(source, target, **options):
        asked.append(("name", Path(source).stat().st_ino, Path(target).name))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return asked


def _publish(folder):
    names = {temporary_name(folder / name): folder / name for name in ("tar", "json")}
    for temporary in names:
        temporary.write_bytes(b"content")
    publish_all(names)


def _copy(folder):
    (folder / "source").write_bytes(b"content")
    copy_atomically(folder / "source", folder / "json")


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (_publish, ["tar", "json"]),
        (_copy, ["json"]),
        (lambda folder: write_atomically(folder / "json", b"content"), ["json"]),
    ],
)
def test_a_name_is_given_to_flushed_content_in_order_and_then_flushed_itself(tmp_path, steps, write, named):
    write(tmp_path)
    files = {name: (tmp_path / name).stat().st_ino for name in named}
    given = [step for step in steps if step[0] == "name"]
    assert given == [("name", files[name], name) for name in named]
    for _, file, _ in given:
        assert ("flush", file, 7) in steps[: steps.index(given[0])]
    after = steps[steps.index(given[-1]) + 1 :]
    assert [inode for _, inode, _ in after] == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("write", [_copy, lambda folder: write_atomically(folder / "json", b"content")])
def test_what_cannot_get_its_name_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, write):
    (tmp_path / "json").write_bytes(b"old")

    def refused(*_, **__):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="the disk is gone"):
        write(tmp_path)
    assert (tmp_path / "json").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} <= {"json", "source"}


def _count(folder):
    for _ in range(50):
        with alone_with(folder):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))


def test_processes_that_are_alone_with_a_folder_lose_no_count(tmp_path):
    (tmp_path / "number").write_text("0")
    forked = multiprocessing.get_context("fork")
    runs = [forked.Process(target=_count, args=(tmp_path,)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert (tmp_path / "number").read_text() == "150"


def test_a_pipe_is_no_file_at_once_and_costs_no_descriptor(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("pipe", "."):
        for _ in range(20):
            with pytest.raises(OSError, match="no plain file"):
                open_plain(tmp_path / name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [size_of(tmp_path / name) for name in ("pipe", ".", "missing")] == [None] * 3


def test_reads_that_come_back_short_are_gone_on_with(tmp_path, monkeypatch):
    # As the system does with more than 2 GiB, and a network mount with less.
    data, read = bytes(range(50)), os.pread
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr(os, "pread", lambda file, size, place: read(file, min(size, 7), place))
    for offset, size in ((0, 200), (3, 50), (150, 100), (200, 5), (10, 0)):
        assert read_range(tmp_path / "file", offset, size) == data[offset : offset + size]


@pytest.fixture
def bucket(tmp_path):
    """A store with objects, a marker of a folder, an empty object, and the same files on disk."""
    for name, data in (("a/x.tar", b"12345"), ("a/empty", b""), ("a/b/y", b"1"), ("z", b"22")):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(data)
        MemoryFileSystem().pipe_file(f"/bucket/root/{name}", data)
    yield as_path("memory://bucket/root"), tmp_path / "root"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_a_store_is_listed_as_a_disk_is(bucket):
    remote, local = bucket
    assert sizes_in(remote / "a") == sizes_in(local / "a") == {"x.tar": 5, "empty": 0}
    assert sizes_in(remote / "none") == sizes_in(local / "none") == {}
    assert paths_in(remote, "a") == paths_in(local, "a") == ["a/b/y", "a/empty", "a/x.tar"]
    assert sorted(names_in(remote)) == sorted(names_in(local)) == ["a", "z"]
    assert list(files_below(remote)) == ["a/b/y", "a/empty", "a/x.tar", "z"]
    for name in ("a/x.tar", "a/empty"):
        assert size_of(remote / name) == size_of(local / name)
        assert file_sha256(remote / name) == file_sha256(local / name)
    assert size_of(remote / "none") is size_of(local / "none") is None
    for root in bucket:
        remove_tree(root / "a")
        remove_tree(root / "a")
        assert names_in(root) == ["z"]


def test_what_is_put_into_a_store_takes_no_room_here_any_more(bucket, tmp_path):
    remote, _ = bucket
    scratch = {tmp_path / name: remote / name for name in ("tar", "json")}
    for temporary in scratch:
        temporary.write_bytes(temporary.name.encode())
    publish_all(scratch)
    assert [read_range(remote / name, 0, 9) for name in ("tar", "json")] == [b"tar", b"json"]
    assert not any(temporary.exists() for temporary in scratch)


class _LineCutError(Exception):
    """As backends have them: no OSError."""


@pytest.mark.parametrize(
    ("raised", "expected"), [(_LineCutError("cut"), OSError), (AlignDetError("ours"), AlignDetError)]
)
def test_what_a_stores_client_raises_is_an_error_of_the_system_and_what_is_told_to_users_stays(
    bucket, monkeypatch, raised, expected
):
    def fails(*_, **__):
        raise raised

    for call in ("pipe_file", "ls"):
        monkeypatch.setattr(MemoryFileSystem, call, fails)
    for ask in (lambda root: write_atomically(root / "x", b"1"), names_in):
        with pytest.raises(expected, match=str(raised)):
            ask(bucket[0])


def test_a_folder_of_a_store_that_may_not_be_listed_is_not_taken_for_empty(bucket, monkeypatch):
    def denied(*_, **__):
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(MemoryFileSystem, "ls", denied)
    with pytest.raises(DeniedError, match="AccessDenied"):
        sizes_in(bucket[0] / "a")


def test_files_that_go_away_while_they_are_listed_are_passed_over(tmp_path, monkeypatch):
    left, listing = temporary_name(tmp_path / "x"), os.scandir
    for name in (left, tmp_path / "kept"):
        name.write_bytes(b"1")

    @contextlib.contextmanager
    def late(folder):
        with listing(folder) as entries:
            found = list(entries)
        left.unlink(missing_ok=True)
        yield iter(found)

    monkeypatch.setattr(os, "scandir", late)
    assert sizes_in(tmp_path) == {"kept": 1}


def test_links_are_listed_by_their_own_names_and_sizes_are_of_files_alone(tmp_path):
    (tmp_path / "in" / "folder").mkdir(parents=True)
    (tmp_path / "in" / "file").write_bytes(b"123")
    (tmp_path / "in" / "to-folder").symlink_to(tmp_path / "in" / "folder")
    (tmp_path / "in" / "to-nothing").symlink_to(tmp_path / "nowhere")
    assert paths_in(tmp_path, "in") == ["in/file", "in/to-folder", "in/to-nothing"]
    assert sizes_in(tmp_path / "in") == {"file": 3}


def test_leftovers_are_removed_and_nothing_behind_a_link(tmp_path):
    kept, elsewhere = temporary_name(tmp_path / "progress"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "photo").write_bytes(b"x")
    temporary_name(tmp_path / "repair").mkdir()
    (next(tmp_path.glob(f"repair{TEMPORARY_MARK}*")) / "shard").write_bytes(b"x")
    temporary_name(tmp_path / "plan").symlink_to(elsewhere)
    for name in (kept, temporary_name(tmp_path / "00000.tar"), tmp_path / "00000.tar"):
        name.write_bytes(b"x")
    assert remove_leftovers(tmp_path, of=("00000", "00001")) == 1
    assert remove_leftovers(tmp_path, keep=kept.name) == 2
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, "elsewhere", "00000.tar"}
    assert (elsewhere / "photo").exists()
