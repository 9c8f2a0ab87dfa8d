"""Tars, tables and folders whose store fails while they are listed: the job stops, and loses nothing for ever."""

import io
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from pipeline.sources import open_source
from pipeline.sources.tars import TarSource
from proposals.errors import AlignDetError


class _LineCutError(Exception):
    """As backends have them: no OSError."""


def _tar():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 2000
            tar.addfile(info, io.BytesIO(bytes(2000)))
    return stream.getvalue()


def _table():
    rows = [{"bytes": b"x", "path": f"{number}.jpg"} for number in range(50)]
    pq.write_table(pa.table({"image": rows}), stream := io.BytesIO(), row_group_size=10)
    return stream.getvalue()


def _arrow():
    table = pa.table({"image": [b"x"] * 50})
    with pa.ipc.new_stream(stream := io.BytesIO(), table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return stream.getvalue()


_FILES = {"a.tar": _tar, "a.parquet": _table, "a.arrow": _arrow}


@pytest.fixture
def stored():
    """``stored(name, data)``: the URL of a file that a store holds."""
    files = fsspec.filesystem("memory")

    def put(name, data):
        files.pipe_file(f"/listing/{name}", data)
        return f"memory://listing/{name}"

    yield put
    if files.exists("/listing"):
        files.rm("/listing", recursive=True)


_FAILURES = (
    OSError(16, "SlowDown"),
    TimeoutError("late"),
    PermissionError("ExpiredToken"),
    _LineCutError("cut"),
    EOFError("cut"),
    ValueError("odd"),
)


@pytest.mark.parametrize("failure", _FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("name", _FILES)
def test_a_store_that_fails_while_a_container_is_listed_stops_the_job(stored, monkeypatch, name, failure):
    source = open_source(stored(name, _FILES[name]()))
    reads, failing_at, real = [], 0, MemoryFile.read

    def read(self, *size):
        reads.append(size)
        if len(reads) == failing_at:
            raise failure
        return real(self, *size)

    monkeypatch.setattr(MemoryFile, "read", read)
    whole = [entry.uri for entry in source.entries()]
    assert len(whole) >= 5
    for failing_at in (1, len(reads)):  # noqa: B007 - `read` asks: the first of a listing, its last
        reads.clear()
        with pytest.raises(AlignDetError, match=rf"{name} cannot be listed.*Nothing was mined") as caught:
            list(source.entries())
        assert type(failure).__name__ in str(caught.value)
    assert [entry.uri for entry in source.entries()] == whole


@pytest.mark.parametrize("name", _FILES)
@pytest.mark.parametrize("place", ["a store", "this machine"])
def test_a_container_that_is_cut_empty_or_gone_is_one_refusal(stored, tmp_path, name, place):
    def put(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    data = _FILES[name]()
    for content in (data[: len(data) // 2], data[:100], b""):
        source = open_source(
            stored("whole_" + name, data) if place == "a store" else put("whole_" + name, data)
        )
        (stored if place == "a store" else put)("whole_" + name, content)
        uris = [entry.uri for entry in source.entries()]
        assert uris[-1] == "whole_" + name
    gone = TarSource(str(tmp_path), ("gone.tar",))
    assert [entry.uri for entry in gone.entries()] == ["gone.tar"]


@pytest.mark.parametrize("name", ["x//y.jpg", "x/sub//deep/y.jpg", "x/a.tar//0.jpg"])
def test_a_key_with_an_empty_part_is_named_and_never_dropped(stored, name):
    stored("x/0.jpg", b"1")
    stored("x/sub/1.jpg", b"1")
    assert len(list(open_source("memory://listing/x").entries())) == 2
    url = stored(name, b"123")
    with pytest.raises(AlignDetError, match=r"//.*empty part.*Nothing was mined.*list of the images"):
        list(open_source("memory://listing/x").entries())
    # What the message tells to do.
    source = open_source(stored("list.txt", url.encode()))
    assert [source.read(entry.uri) for entry in source.entries()] == [b"123"]
