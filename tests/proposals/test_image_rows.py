"""Rows of tables as images: readers that hang beside others, and cells that hold no image."""

import errno
import io
import os
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from proposals.fetch import SourceUnavailableError
from proposals.image_roots import ImageRoot
from proposals.images import ImageRejected

_ROWS = [f"row {number}".encode() * 50 for number in range(200)]


@pytest.fixture
def root():
    """A table of 200 rows, 20 to a row group, in a store."""
    files = fsspec.filesystem("memory")
    pq.write_table(pa.table({"raw": _ROWS}), stream := io.BytesIO(), row_group_size=20)
    files.pipe_file("/rows/a.parquet", stream.getvalue())
    yield ImageRoot(kind="parquet", root="memory://rows", column="raw")
    files.rm("/rows", recursive=True)


class _Stall:
    """The next read of a store, whichever thread does it, returns no earlier than ``answer``; those after it do."""

    def __init__(self, patch):
        self.answer, self.waiting, next_one = threading.Event(), threading.Event(), threading.Lock()
        real = MemoryFile.read

        def read(stream, *size):
            if next_one.acquire(blocking=False):
                place = stream.tell()  # every opening of a file in this store shares one
                self.waiting.set()
                self.answer.wait()
                stream.seek(place)
            return real(stream, *size)

        patch.setattr(MemoryFile, "read", read)

    def hang(self, call):
        """A thread that hangs in ``call`` now."""
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        assert self.waiting.wait(60)
        return thread


def _wrong(root, rows):
    """The rows that are read as something else, or not at all."""
    found = {}
    for row in rows:
        try:
            data = root.read(f"a.parquet/{row}")
        except ImageRejected as error:
            data = error.reason.encode()
        if data != _ROWS[row]:
            found[row] = data[:20]
    return found


def test_rows_are_read_in_any_order(root):
    # 16 rows are held at a time, of a group of 20.
    assert not _wrong(root, [19, 0, 15, 16, 3, 39, 20, 199, 180, 5])


def test_a_row_is_read_while_another_reader_hangs_at_it(root, monkeypatch):
    assert not _wrong(root, [0])
    stall = _Stall(monkeypatch)
    thread = stall.hang(lambda: root.read("a.parquet/64"))
    try:
        assert not _wrong(root, range(60, 128))
    finally:
        stall.answer.set()
        thread.join(60)


def test_a_reader_that_comes_back_late_changes_nothing_for_the_next(root, monkeypatch):
    assert not _wrong(root, [20])
    stall = _Stall(monkeypatch)
    found = []
    thread = stall.hang(lambda: found.append(root.read("a.parquet/44")))
    wrong = _wrong(root, range(20, 25))
    stall.answer.set()
    thread.join(60)
    assert found == [_ROWS[44]]
    assert not {**wrong, **_wrong(root, range(25, 80))}


_BYTES, _PATH = ("bytes", pa.binary()), ("path", pa.string())
# Cells that hold no image, and those that hold the bytes "x".
_NO_IMAGES = {
    "a_number": pa.array([5]),
    "a_list_of_bytes": pa.array([[b"x"]]),
    "bytes_as_numbers": pa.array([{"bytes": [1, 2], "path": "a"}], pa.struct([("bytes", pa.list_(pa.uint8())), _PATH])),
    "bytes_as_text": pa.array([{"bytes": "eA==", "path": "a"}], pa.struct([("bytes", pa.string()), _PATH])),
    "a_path_of_bytes": pa.array([{"bytes": b"x", "path": b"a"}], pa.struct([_BYTES, ("path", pa.binary())])),
    "a_path_of_a_number": pa.array([{"bytes": b"x", "path": 3}], pa.struct([_BYTES, ("path", pa.int64())])),
    "neither": pa.array([{"id": 3}]),
}  # fmt: skip
_IMAGES = {
    "bytes": pa.array([b"x"]),
    "large_bytes": pa.array([b"x"], pa.large_binary()),
    "fixed_bytes": pa.array([b"x"], pa.binary(1)),
    "a_struct": pa.array([{"bytes": b"x", "path": None}], pa.struct([_BYTES, ("path", pa.null())])),
    "only_bytes": pa.array([{"bytes": b"x"}]),
    "a_path": pa.array(["x.jpg"]),
    "a_large_path": pa.array(["x.jpg"], pa.large_string()),
    "a_path_of_a_dictionary": pa.array(["x.jpg"]).dictionary_encode(),
}


def _written(folder, cells, form):
    table = pa.table({"image": cells})
    if form == "parquet":
        pq.write_table(table, folder / "a.parquet")
    else:
        with pa.ipc.new_file(folder / "a.arrow", table.schema) as writer:
            writer.write_table(table)
    return ImageRoot(kind=form, root=str(folder), column="image")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("name", _NO_IMAGES)
def test_a_cell_of_another_type_is_refused(tmp_path, name, form):
    with pytest.raises(ImageRejected) as caught:
        _written(tmp_path, _NO_IMAGES[name], form).read(f"a.{form}/0")
    assert (caught.value.stage, caught.value.reason) == ("read", "broken_container")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("name", _IMAGES)
def test_a_cell_of_any_kind_of_bytes_or_path_is_read(tmp_path, name, form):
    (tmp_path / "x.jpg").write_bytes(b"x")
    assert _written(tmp_path, _IMAGES[name], form).read(f"a.{form}/0") == b"x"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_does_not_answer_is_no_fault_of_a_row(tmp_path, monkeypatch, number):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("proposals.image_rows.open_binary", fail)
    with pytest.raises(SourceUnavailableError, match=os.strerror(number)):
        ImageRoot(kind="parquet", root=str(tmp_path), column="raw").read("a.parquet/0")


@pytest.mark.parametrize("error", [ConnectionResetError("cut off"), RuntimeError("of a backend of its own")])
def test_a_store_that_does_not_answer_is_no_fault_of_a_row(root, monkeypatch, error):
    def fail(*_):
        raise error

    root.read("a.parquet/0")
    monkeypatch.setattr(MemoryFile, "read", fail)
    with pytest.raises(SourceUnavailableError, match=str(error)):
        root.read("a.parquet/190")


def test_of_a_large_row_group_at_a_url_no_more_is_read_than_comes_before(monkeypatch):
    # pyarrow writes a file as one row group, of which a shard needs a few rows.
    files, real, read = fsspec.filesystem("memory"), MemoryFile.read, []
    rows = [os.urandom(1_000) for _ in range(12_000)]
    pq.write_table(pa.table({"raw": rows}), stream := io.BytesIO())
    files.pipe_file("/large/a.parquet", stream.getvalue())
    monkeypatch.setattr(MemoryFile, "read", lambda file, *size: read.append(len(d := real(file, *size))) or d)
    root = ImageRoot(kind="parquet", root="memory://large", column="raw")
    assert root.read("a.parquet/0") == rows[0]
    assert sum(read) < 4e6
    assert [root.read(f"a.parquet/{row}") for row in (7, 11_999)] == [rows[7], rows[-1]]
    files.rm("/large", recursive=True)
