"""Tars as a source of images, and as a dataset's shards: members that are sound are read, the rest has a reason."""

import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import open_source
from pipeline.sources.tars import TarSource
from proposals.dataset import layout
from proposals.dataset.verify import verify_dataset
from proposals.images import ImageRejected
from tests.attacks.tars import END, giant, header, member, negative, pax, ustar

_OK = member("ok.jpg", b"12345")
_BROKEN = "broken_container"
# A name to (the tar, what comes of its entries in order).
TARS = {
    "a_member_that_goes_back": (_OK + header("b.jpg", raw_size=negative(-1536)) + END, ["5 bytes", _BROKEN]),
    "a_first_member_that_goes_back": (header("b.jpg", raw_size=negative(-512)) + END, [_BROKEN]),
    "ten_gigabytes_declared": (_OK + header("b.jpg", 10 * 2**30) + END, ["5 bytes", "too_large", _BROKEN]),
    "more_than_a_file_can_have": (_OK + header("b.jpg", raw_size=giant(2**80)) + END, ["5 bytes", _BROKEN]),
    "an_extended_header_of_an_exabyte": (_OK + header("p", 2**60, b"x") + END, ["5 bytes", _BROKEN]),
    "an_extended_header_that_goes_back": (
        _OK + header("p", kind=b"x", raw_size=negative(-512)) + END,
        ["5 bytes", _BROKEN],
    ),
    "a_long_name_of_an_exabyte": (_OK + header("l", 2**60, b"L") + END, ["5 bytes", _BROKEN]),
    "extended_headers_without_end": (_OK + pax(b"path=a.jpg") * 5000 + END, ["5 bytes", _BROKEN]),
    "long_names_without_end": (_OK + member("l", b"a.jpg\0", b"L") * 5000 + END, ["5 bytes", _BROKEN]),
    "a_length_of_a_thousand_digits": (
        _OK + member("p", b"1" * 15_000, b"x") + member("b.jpg") + END,
        ["5 bytes", _BROKEN],
    ),
    "a_sparse_map_that_never_ends": (
        _OK + pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9") + member("b.jpg", b"9" * 512),
        ["5 bytes", _BROKEN],
    ),
    "a_size_below_zero_in_an_extended_header": (
        _OK + pax(b"size=-1024") + member("b.jpg") + END,
        ["5 bytes", _BROKEN],
    ),
    "a_cut_member": (_OK + member("b.jpg", bytes(5000))[:2000], ["5 bytes", "container_cut", _BROKEN]),
    "a_damaged_header": (_OK + b"\1" + member("b.jpg")[1:] + END, ["5 bytes", _BROKEN]),
    "names_that_leave": (member("../../up.jpg") + member("/etc/abs.jpg") + END, ["3 bytes", "3 bytes"]),
    "links_and_devices": (
        b"".join(header(f"{kind.decode()}.jpg", kind=kind) for kind in (b"1", b"2", b"3", b"4", b"6")) + _OK + END,
        ["empty_member", "empty_member", "5 bytes"],
    ),
    "a_name_that_is_no_text": (member("bX.jpg", raw_name=b"b\xe9") + END, ["3 bytes"]),
    "a_name_of_many_lines": (member("a\n\n/b.jpg") + END, ["3 bytes"]),
    "one_name_twice": (_OK + member("ok.jpg", b"1") + END, ["5 bytes", "1 bytes"]),
    "interleaved_samples": (_OK + member("b.jpg") + member("ok.json") + member("b.json") + END, ["5 bytes", "3 bytes"]),
    "a_long_name": (member("l", b"d/" * 2000 + b"a.jpg\0", b"L") + member("x") + END, ["3 bytes"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_a_tar_as_a_source(name, confined, tmp_path):
    data, expected = TARS[name]
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    outcome = confined.read("tar", path, megabytes=64, seconds=20)
    assert (outcome.kind, outcome.text) == ("value", str(expected))
    assert list(tmp_path.iterdir()) == [path]  # nothing is unpacked anywhere


@pytest.mark.parametrize(
    ("name", "kind"), [("x.tar", "webdataset"), ("x.parquet", "parquet"), ("x.arrow", "arrow")]
)
def test_a_pipe_of_a_containers_name_is_one_refusal_and_waits_for_nobody(name, kind, tmp_path):
    os.mkfifo(tmp_path / name)
    source = open_source(str(tmp_path), kind, column=None if kind == "webdataset" else "image")
    assert [entry.uri for entry in source.entries()] == [name]
    with pytest.raises(ImageRejected, match="cannot be read"):
        source.read(name)


def test_a_members_name_finds_no_file(tmp_path):
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.tar").write_bytes(member("../outside.jpg", b"mine") + END)
    source = TarSource(str(folder), ("a.tar",))
    (entry,) = source.entries()
    assert source.read(entry.uri) == b"mine"


@pytest.mark.parametrize("name", TARS)
def test_verify_goes_through_any_tar(name, confined, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(TARS[name][0])
    outcome = confined.read("tar_members", path, megabytes=64, seconds=20)
    assert outcome.kind == "value", outcome
    assert "is unexpected" in outcome.text or "is no sound tar" in outcome.text


def _tarred(root, parts, place):
    """Make ``parts`` the tar of shard 00001, and its table say where its images are now, from ``place`` on."""
    layout.tar_path(root, "00001").write_bytes(
        b"".join(parts).ljust(-(-sum(map(len, parts)) // 10240) * 10240, b"\0")
    )
    ends = [sum(map(len, parts[:count])) for count in range(len(parts))]
    path = layout.parquet_path(root, "00001")
    table = pq.read_table(path)
    field = table.schema.field("tar_offset")
    starts = pa.array([ends[place(row)] + 512 for row in range(len(table))], pa.int64())
    pq.write_table(
        table.set_column(table.schema.get_field_index("tar_offset"), field, starts), path, compression="zstd"
    )


def _members_of(root):
    with tarfile.open(layout.tar_path(root, "00001")) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive.getmembers()]


def _faults(root, deep=True):
    report = verify_dataset(root, deep=deep)
    return [problem.what for problem in report.problems if problem.file == "shards/00001.tar"]


def test_what_tarfile_does_not_show_is_named(copy, reseal):
    """A name that other readers go by, in the plain header behind an extended one, and a text in that one."""
    parts = [ustar(name, data) for name, data in _members_of(copy)]
    name, data = _members_of(copy)[3]
    hidden = pax(b"path=" + name.encode(), b"comment=#!/bin/sh hidden")
    parts[3:4] = [hidden, ustar("../../../tmp/evil.pkl", data)]
    _tarred(copy, [*parts, END], lambda row: 2 * row + (row > 1))
    reseal(copy)
    with tarfile.open(layout.tar_path(copy, "00001")) as archive:
        assert archive.getnames() == [name for name, _ in _members_of(copy)]
    begin = len(b"".join(parts[:3]))
    assert _faults(copy) == [f"member {name!r} has another header than the format fixes, at byte {begin}"]


def _linked(parts):
    info = tarfile.TarInfo.frombuf(parts[4][:512], "ascii", "strict")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    parts[4] = info.tobuf(tarfile.USTAR_FORMAT) + parts[4][512:]
    return 0


def _commented(parts):
    parts[0:0] = [pax(b"comment=hidden")]
    return 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_linked, "holds no image of"),
        (_commented, "does not begin with the image of"),
    ],
)
def test_what_hides_at_either_end_of_a_tar_is_named_without_deep(copy, reseal, change, words):
    parts = [ustar(name, data) for name, data in _members_of(copy)]
    more = change(parts)
    _tarred(copy, [*parts, END], lambda row: 2 * row + more)
    reseal(copy)
    (fault,) = _faults(copy, deep=False)
    assert words in fault


def test_what_lies_between_two_members_is_named(copy, reseal):
    name, data = _members_of(copy)[0]
    assert len(data) % 512
    parts = [ustar(name, data) for name, data in _members_of(copy)]
    parts[0] = parts[0][: 512 + len(data)] + b"hidden".ljust(-len(data) % 512, b"\0")
    _tarred(copy, [*parts, END], lambda row: 2 * row)
    reseal(copy)
    assert _faults(copy) == [f"holds something behind member {name!r}, at byte {512 + len(data)}"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "1" + "0" * 39, "1e400", "1e39", "9" * 5000, "NaN", "[]", "{}"]
)
@pytest.mark.parametrize("place", ["boxes", "ranks"])
def test_an_annotation_with_a_number_that_is_none_is_named(copy, reseal, number, place):
    parts = [ustar(name, data) for name, data in _members_of(copy)]
    name, data = _members_of(copy)[-1]
    content = json.loads(data)
    (content["boxes"][0] if place == "boxes" else content["ranks"])[0] = "NUMBER"
    parts[-1] = ustar(name, json.dumps(content).replace('"NUMBER"', number).encode())
    _tarred(copy, [*parts, END], lambda row: 2 * row)
    reseal(copy)
    assert _faults(copy) == [f"{name} does not say what the table says"]


def test_a_shard_of_ten_gigabytes_of_nothing_is_named(confined, copy, reseal):
    tar = layout.tar_path(copy, "00000")
    with tarfile.open(tar) as archive:
        first = archive.next()
    block = header(first.name, 10 * 2**30)
    with tar.open("r+b") as stream:
        stream.write(block)
        stream.truncate(10 * 2**30 + 2**20)
    outcome = confined.read("tar_members", tar, megabytes=800)
    assert outcome.kind == "value", outcome
    outcome = confined.read("dataset", copy)
    assert outcome.kind == "refused", outcome
    assert "dataset.json says" in outcome.text


def test_a_pipe_in_the_place_of_a_shard_is_not_waited_for(confined, copy):
    for path in (layout.tar_path(copy, "00000"), layout.parquet_path(copy, "00001")):
        path.unlink()
        os.mkfifo(path)
        outcome = confined.read("dataset", copy, seconds=20)
        assert outcome.kind == "refused"
        assert "plain file" in outcome.text
    outcome = confined.read("verified", copy, seconds=20)
    assert outcome.text.count("is a pipe, not a file") == 2


def test_a_tar_that_is_cut_while_it_is_listed_ends_there(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(100):
            member = tarfile.TarInfo(f"{number:03d}.jpg")
            member.size = 100_000
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    entries = open_source(str(path)).entries()
    first = next(entries)
    os.truncate(path, 50 * 100_000)
    rest = [entry.uri for entry in entries]
    assert first.uri.endswith("/000.jpg")
    assert len(rest) == 50
    assert rest[-1] == "a.tar"
