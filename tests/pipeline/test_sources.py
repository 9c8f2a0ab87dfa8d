"""Every kind of source: what it lists, in which order, and that it reads the bytes that are there."""

import http.server
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan import make_plan
from pipeline.sources import FolderSource, SourceEntry, SourceUnavailableError, open_source
from pipeline.sources.runs import sorted_pairs
from pipeline.sources.tables import ArrowSource, ParquetSource
from pipeline.sources.tars import TarSource
from proposals.errors import AlignDetError, MissingExtraError
from proposals.image_roots import ImageRoot
from proposals.images import ImageRejected
from proposals.paths import as_path
from tests.web_server import serving

_COLORS = {"a.jpg": b"first", "b/c.png": b"second one", "z.webp": b"3"}


@pytest.fixture
def folder(tmp_path):
    for name, data in _COLORS.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    return tmp_path / "in"


def _content(source):
    """(uri, size, bytes) of every entry, read by a copy that travelled as it would to a worker."""
    copy = pickle.loads(pickle.dumps(source))
    return [(entry.uri, entry.size, copy.read(entry.uri)) for entry in source.entries()]


def _reason(source, uri):
    with pytest.raises(ImageRejected) as caught:
        source.read(uri)
    return caught.value.reason


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/busy"):
            self.send_error(503)
        elif self.path.startswith("/private"):
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def web(folder):
    """The URL of a web server on loopback that serves ``folder``."""
    with serving(folder, _Quiet) as url:
        yield url


def _copy_to_url(folder, name):
    root = as_path(f"memory://{name}")
    for path in folder.rglob("*.*"):
        (root / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return str(root)


def test_a_folder_at_a_url_lists_what_the_local_one_lists(folder):
    url = _copy_to_url(folder, "same-list")
    there, here = open_source(url), FolderSource(folder)
    assert _content(there) == _content(here) == [(uri, len(data), data) for uri, data in _COLORS.items()]
    assert [uri for uri, _, _ in _content(open_source(url, glob="b/*"))] == ["b/c.png"]
    assert _reason(there, "gone.jpg") == "missing"


def test_order_is_that_of_whole_paths(tmp_path):
    names = ["a-b/x.jpg", "a.jpg", "a/x.jpg", "a/y/z.jpg", "a0.jpg", "é.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [entry.uri for entry in FolderSource(tmp_path).entries()] == sorted(names)


def test_a_link_to_a_folder_below_the_source_renames_nothing_in_it(tmp_path):
    for name in ("in/z/0.jpg", "outside/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "m").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "a").symlink_to("z")
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "source").symlink_to("in")
    for root in ("in", "source"):
        assert [entry.uri for entry in FolderSource(tmp_path / root).entries()] == ["m/1.jpg", "z/0.jpg"]


def test_names_are_sorted_in_runs_that_fit_in_memory():
    pairs = [(f"{(7919 * i) % 1000:03d}\n", f"\udcff{i}") for i in range(1000)]
    assert list(sorted_pairs(iter(pairs), run=64)) == sorted(pairs)


def test_a_text_list_keeps_its_order_and_every_line(folder):
    absolute = str(folder / "a.jpg").encode()
    (folder.parent / "list.txt").write_bytes(b"z.webp\r\n\n" + absolute + b"\nb/../a.jpg\n\xff.jpg\n")
    source = open_source(str(folder.parent / "list.txt"), image_root=str(folder))
    uris = ["z.webp", str(folder / "a.jpg"), "b/../a.jpg", "\\xff.jpg"]
    assert list(source.entries()) == [
        SourceEntry(uri, size) for uri, size in zip(uris, (1, 5, -1, -1), strict=True)
    ]
    assert [source.read(uri) for uri in uris[:2]] == [b"3", b"first"]
    assert [_reason(source, uri) for uri in uris[2:]] == ["not_allowed", "missing"]


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 5000 + ".jpg", "x/" * 3000 + "a.jpg", "\udcff.jpg"])
def test_a_name_that_no_file_can_have_is_a_refusal(tmp_path, name):
    assert _reason(ImageRoot(kind="list", root=str(tmp_path)), name) in ("bad_name", "missing")


def test_a_list_of_names_that_are_no_utf8_finds_their_files(tmp_path):
    name = b"A\xf1o.jpg"
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as stream:  # noqa: PTH123 - a name that is no text
        stream.write(b"abc")
    (tmp_path / "list.txt").write_bytes(name)
    assert _content(open_source(str(tmp_path / "list.txt"))) == [("A\\xf1o.jpg", 3, b"abc")]


def test_a_cell_of_a_csv_may_be_long_and_one_without_end_is_named(folder):
    (folder / "list.csv").write_text("path,features\na.jpg," + "1" * 140_000 + "\n")
    assert [uri for uri, _, _ in _content(open_source(str(folder / "list.csv")))] == ["a.jpg"]
    (folder / "list.csv").write_text("path,features\na.jpg,1\na.jpg," + "1" * (2**20 + 1) + "\n")
    with pytest.raises(AlignDetError, match="line 3, has a cell of more than 1048576 characters"):
        list(open_source(str(folder / "list.csv")).entries())


def test_a_csv_list_names_its_column(folder):
    (folder / "list.csv").write_text('id,file_name\n1,"a.jpg"\n2,b/c.png\n')
    assert [uri for uri, _, _ in _content(open_source(str(folder / "list.csv")))] == ["a.jpg", "b/c.png"]
    (folder / "both.csv").write_text("image,path\nb/c.png,a.jpg\n")
    assert [uri for uri, _, _ in _content(open_source(str(folder / "both.csv")))] == ["a.jpg"]
    (folder / "bad.csv").write_text("id,what\n1,a.jpg\n")
    with pytest.raises(AlignDetError, match="no column of images"):
        list(open_source(str(folder / "bad.csv")).entries())


def test_a_coco_json_names_images_below_another_folder(folder):
    content = {
        "info": {},
        "images": [{"id": 1, "file_name": "z.webp"}, {"id": 2, "file_name": "a.jpg"}],
        "annotations": [],
    }
    (folder.parent / "instances.json").write_text(json.dumps(content))
    path = str(folder.parent / "instances.json")
    assert [uri for uri, _, _ in _content(open_source(path, image_root=str(folder)))] == ["z.webp", "a.jpg"]
    with pytest.raises(AlignDetError, match="--image-root"):
        list(open_source(path).entries())


def test_a_list_from_a_web_server_reads_relative_names_and_urls(folder, web):
    (folder / "list.txt").write_text(
        f"a.jpg\n{web}/z.webp\n{web}/gone.jpg\n{web}/private.jpg\n{web}/busy.jpg\n"
    )
    source = open_source(f"{web}/list.txt")
    first, second, *others = [entry.uri for entry in source.entries()]
    assert [source.read(first), source.read(second)] == [b"first", b"3"]
    assert [_reason(source, uri) for uri in others] == ["missing", "permission_denied", "unreachable"]
    assert _reason(source, "http://127.0.0.1:9/x.jpg") == "unreachable"


class _GarblesOnce(_Quiet):
    garbled = False

    def do_GET(self):
        if self.garbled:
            super().do_GET()
        else:
            type(self).garbled = True
            self.wfile.write(b"the rest of another answer\r\n\r\n")


def test_an_answer_that_cannot_be_understood_is_asked_for_again(folder):
    with serving(folder, _GarblesOnce) as url:
        assert ImageRoot(kind="list", root=url).read("a.jpg") == b"first"


def test_a_url_that_looks_like_a_chain_is_not_blamed_on_its_scheme(folder):
    with pytest.raises(ImageRejected, match="a URL with :: in it is not read"):
        ImageRoot(kind="list", root=str(folder)).read("http://[::1]/a.jpg")


@pytest.mark.parametrize(
    "uri", ["http://[img]/a.jpg", "https://[]/a.jpg", "http://a:b/c.jpg", "http:///a.jpg"]
)
def test_a_url_that_is_none_is_refused_alone(folder, uri):
    (folder / "list.txt").write_text(f"a.jpg\n{uri}\n")
    source = open_source(str(folder / "list.txt"))
    assert source.read("a.jpg") == b"first"
    assert _reason(source, uri) == "bad_url"


def test_a_source_whose_url_is_none_is_a_users_error():
    with pytest.raises(AlignDetError, match=r"http://\[img\]/list.txt cannot be understood as a URL"):
        open_source("http://[img]/list.txt")


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="for a machine without gcsfs")
@pytest.mark.parametrize(
    ("kind", "uri"),
    [("list", "gs://bucket/a.jpg"), ("parquet", "a.parquet/0"), ("webdataset", "a.tar/512+9/a.jpg")],
)
def test_a_missing_library_is_no_fault_of_an_image(kind, uri):
    with pytest.raises(MissingExtraError, match="gcsfs"):
        ImageRoot(kind=kind, root="gs://bucket", column="image").read(uri)


def test_what_is_below_one_root_is_tried_again_when_its_server_is_busy(web):
    with pytest.raises(SourceUnavailableError, match="503"):
        ImageRoot(kind="folder", root=web).read("busy.jpg")


@pytest.mark.parametrize(
    "uri",
    ["file:///etc/hostname", "/etc/hostname", "../hostname", "a/../../b", "pipe:cat /etc/hostname", "local:///etc/hostname",
     "simplecache::file:///etc/hostname", "s3://b/x::file:///etc/hostname", "FILE:///etc/hostname"],
)  # fmt: skip
def test_a_list_from_elsewhere_cannot_name_local_files(uri):
    root = as_path("memory://lists")
    (root / "list.txt").write_bytes(f"{uri}\n".encode())
    source = open_source(str(root / "list.txt"))
    assert [entry.uri for entry in source.entries()] == [uri]
    assert _reason(source, uri) in ("not_allowed", "missing")
    assert _reason(ImageRoot(kind="folder", root="memory://lists"), uri) in ("not_allowed", "missing")


def _tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tars_give_their_images_by_the_bytes_they_are_at(tmp_path):
    _tar(tmp_path / "x-1.tar", [("0.jpg", b"one"), ("0.json", b"{}"), ("sub/1.left.png", b"two")])
    _tar(tmp_path / "x-0.tar", [("0.jpg", b"zero")])
    source = open_source(str(tmp_path))
    found = _content(source)
    assert [(size, data) for _, size, data in found] == [(4, b"zero"), (3, b"one"), (3, b"two")]
    assert [uri for uri, _, _ in found] == [
        "x-0.tar/512+4/0.jpg",
        "x-1.tar/512+3/0.jpg",
        "x-1.tar/2560+3/sub/1.left.png",
    ]
    assert _content(open_source(f"{tmp_path}/x-{{0..1}}.tar")) == found
    remote = open_source(_copy_to_url(tmp_path, "tars"))
    assert _content(remote) == found
    assert [uri for uri, _, _ in _content(open_source(str(tmp_path), glob="sub/*"))] == [
        "x-1.tar/2560+3/sub/1.left.png"
    ]


@pytest.mark.parametrize("damage", ["cut in a member", "a broken header", "cut before the end mark"])
def test_a_damaged_tar_gives_what_comes_before_and_one_refusal(tmp_path, damage):
    _tar(tmp_path / "x.tar", [("0.jpg", b"one"), ("1.jpg", b"two" * 400)])
    data = bytearray((tmp_path / "x.tar").read_bytes())
    if damage == "a broken header":
        data[1024:1030] = b"broken"
    (tmp_path / "x.tar").write_bytes(
        data[:1800] if "member" in damage else data[:3072] if "mark" in damage else data
    )
    source = open_source(str(tmp_path))
    listed = [entry.uri for entry in source.entries()]
    assert listed[0] == "x.tar/512+3/0.jpg"
    assert listed[-1] == "x.tar"
    assert _reason(source, "x.tar") == "broken_container"
    if damage == "cut in a member":
        assert _reason(source, listed[1]) == "container_cut"


def test_links_in_a_tar_are_images_and_what_it_does_not_hold_is_rejected(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind, target in (
            ("a/0.jpg", tarfile.REGTYPE, ""),
            ("hard.jpg", tarfile.LNKTYPE, "a/0.jpg"),
            ("a/soft.jpg", tarfile.SYMTYPE, "0.jpg"),
            ("a/again.jpg", tarfile.SYMTYPE, "soft.jpg"),
            ("away.jpg", tarfile.SYMTYPE, "/etc/0.jpg"),
            ("folder.jpg", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"one"))
    source = open_source(str(tmp_path))
    *found, away = source.entries()
    assert [(entry.uri.split("/", 2)[2], source.read(entry.uri)) for entry in found] == [
        ("a/0.jpg", b"one"),
        ("hard.jpg", b"one"),
        ("a/soft.jpg", b"one"),
        ("a/again.jpg", b"one"),
    ]
    assert (away.uri.split("/", 2)[2], away.size) == ("away.jpg", 0)
    assert _reason(source, away.uri) == "empty_member"


def test_a_sparse_image_is_rejected_and_not_lost(tmp_path):
    with (tmp_path / "0.bmp").open("wb") as file:
        file.truncate(10**6)
        file.write(b"end")
    subprocess.run(["tar", "cSf", "x.tar", "0.bmp"], cwd=tmp_path, check=True)
    source = open_source(str(tmp_path / "x.tar"))
    (entry,) = source.entries()
    assert entry.uri.endswith("/0.bmp")
    assert (entry.size, _reason(source, entry.uri)) == (0, "empty_member")


def test_a_tar_that_another_was_joined_to_says_so(tmp_path):
    _tar(tmp_path / "a.tar", [("0.jpg", b"one")])
    _tar(tmp_path / "b.tar", [("1.jpg", b"two")])
    joined = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(joined)
    source = open_source(str(tmp_path / "b.tar"))
    assert [entry.uri for entry in source.entries()] == ["b.tar/512+3/0.jpg", "b.tar"]
    assert _reason(source, "b.tar") == "broken_container"


@pytest.mark.parametrize("kind", [None, "webdataset", "parquet"])
def test_a_job_inside_of_its_source_does_not_mine_itself(tmp_path, kind):
    if kind == "parquet":
        pq.write_table(pa.table({"raw": [b"x"]}), tmp_path / "a.parquet")
    else:
        _tar(tmp_path / "x.tar", [("0.jpg", b"one")])
    out = tmp_path / "deep" / "OUT"
    before = _content(open_source(str(tmp_path), kind, out=out))
    (out / "shards").mkdir(parents=True)
    _tar(out / "shards" / "00000.tar", [("0.jpg", b"one")])
    for name in ("plan", "rejected"):
        pq.write_table(pa.table({"raw": [b"x"]}), out / f"{name}.parquet")
    assert _content(open_source(str(tmp_path), kind, out=out)) == before
    assert len(before) == 1
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "elsewhere" / "OUT").absolute()
    out.rename(moved)
    out.symlink_to(moved)
    assert _content(open_source(str(tmp_path), kind, out=out)) == before
    out.unlink()
    moved.rename(out)
    remote = _copy_to_url(tmp_path, f"inside-{kind}")
    found = open_source(remote, kind, out=as_path(f"{remote}/deep/OUT"))
    assert _content(found) == before


@pytest.mark.parametrize("kind", [None, "webdataset", "parquet"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_dataset_below_the_source_is_no_part_of_it(mined_dataset, tmp_path, kind, finished):
    if kind == "parquet":
        pq.write_table(pa.table({"raw": [b"x"]}), tmp_path / "a.parquet")
    else:
        _tar(tmp_path / "x.tar", [("0.jpg", b"one")])
    earlier = Path(shutil.copytree(mined_dataset, tmp_path / "deep" / "earlier"))
    if not finished:
        (earlier / "dataset.json").unlink()
    for place in (str(tmp_path), _copy_to_url(tmp_path, f"{finished}-below-{kind}")):
        source = open_source(place, kind, out=tmp_path / "another")
        assert len(_content(source)) == 1
        assert source.left_out == ("deep/earlier",)
    assert len(_content(open_source(str(earlier), "webdataset"))) == 8
    with pytest.raises(AlignDetError, match=r"no \.tar file but those of datasets that were mined: earlier"):
        open_source(str(tmp_path / "deep"), "webdataset")


@pytest.mark.parametrize("sign", ["dataset.json", "plan.parquet"])
def test_a_file_of_ours_by_name_alone_makes_no_dataset(tmp_path, sign):
    (tmp_path / "train" / "shards").mkdir(parents=True)
    (tmp_path / "train" / sign).write_text("{}")
    _tar(tmp_path / "train" / "shards" / "0.tar", [("0.jpg", b"one")])
    source = open_source(str(tmp_path), "webdataset")
    assert (source.left_out, len(_content(source))) == ((), 1)


@pytest.mark.parametrize("place", ["x.tar.gz", "x-{0..3}.tgz", "", "folder_of_gz", "renamed.tar"])
@pytest.mark.parametrize("kind", [None, "webdataset"])
def test_a_compressed_tar_is_said_to_be_one(tmp_path, place, kind):
    (tmp_path / "folder_of_gz").mkdir()
    for name in ("x.tar.gz", "folder_of_gz/y.tar.zst", "renamed.tar"):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("0.jpg"))
    with pytest.raises(AlignDetError, match=r"compressed\. Decompress it"):
        list(open_source(f"{tmp_path}/{place}", kind).entries())


def test_one_compressed_tar_among_others_stops_nothing(tmp_path):
    _tar(tmp_path / "a.tar", [("0.jpg", b"one")])
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"))
    source = open_source(str(tmp_path))
    good, bad = source.entries()
    assert (source.read(good.uri), bad.uri, _reason(source, bad.uri)) == (b"one", "b.tar", "broken_container")


def test_a_tar_that_holds_an_image_and_links_of_its_name_holds_it_once(tmp_path):
    """As `find photos | tar -cf x.tar -T -` makes it: each file by its folder, and once more by itself."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("photos/0.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
        again = tarfile.TarInfo("photos/0.jpg")
        again.type, again.linkname = tarfile.LNKTYPE, "photos/0.jpg"
        tar.addfile(again)
    plan = make_plan(open_source(str(tmp_path / "x.tar")).entries(), 4)
    assert (plan.images, plan.again) == (1, 1)


def test_a_dead_url_in_a_table_is_a_refusal_like_one_in_a_list(tmp_path):
    pq.write_table(pa.table({"url": ["http://127.0.0.1:9/a.jpg"]}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), column="url")
    (entry,) = source.entries()
    assert _reason(source, entry.uri) == "unreachable"


def test_rows_of_parquet_are_images(tmp_path):
    rows = [{"bytes": f"image {i}".encode(), "path": f"deep/{i}.jpg" if i != 2 else None} for i in range(90)]
    table = pa.table({"image": rows, "label": list(range(90))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    pq.write_table(pa.table({"raw": [b"x", b"y"]}), tmp_path / "b.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    found = _content(source)
    assert [data for _, _, data in found] == [row["bytes"] for row in rows]
    assert [uri for uri, _, _ in found[1:3]] == ["a.parquet/1/1.jpg", "a.parquet/2"]
    assert [source.read(found[i][0]) for i in (89, 3, 41, 40)] == [rows[i]["bytes"] for i in (89, 3, 41, 40)]
    assert [data for _, _, data in _content(open_source(str(tmp_path / "b.parquet")))] == [b"x", b"y"]
    assert _reason(source, "a.parquet/90") == "broken_container"
    assert _content(open_source(_copy_to_url(tmp_path, "rows") + "/a.parquet")) == found


def test_a_broken_table_is_one_refusal(tmp_path):
    pq.write_table(pa.table({"raw": [b"x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 broken")
    source = open_source(str(tmp_path))
    assert [entry.uri for entry in source.entries()] == ["a.parquet/0", "b.parquet"]
    assert _reason(source, "b.parquet") == "broken_container"


def _saved_by_datasets(photos, folder):
    """The three photographs that a Hugging Face dataset in ``folder`` is made of."""
    files = sorted(photos.glob("*.jpg"))[:3]
    rows = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in files]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return files


def test_a_hugging_face_dataset_on_disk_is_a_source(photos, tmp_path):
    files = _saved_by_datasets(photos, tmp_path / "saved")
    found = _content(open_source(str(tmp_path / "saved")))
    assert [data for _, _, data in found] == [path.read_bytes() for path in files]
    assert [uri.split("/")[1:] for uri, _, _ in found] == [
        [str(i), path.name] for i, path in enumerate(files)
    ]


def test_what_datasets_keeps_of_map_and_filter_is_no_source(photos, tmp_path):
    _saved_by_datasets(photos, tmp_path / "saved")
    before = _content(open_source(str(tmp_path / "saved")))
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    saved.map(lambda row: row)
    saved.filter(lambda row: True)
    assert len(list((tmp_path / "saved").glob("cache-*.arrow"))) == 2
    assert _content(open_source(str(tmp_path / "saved"))) == before


def test_a_kind_that_is_said_goes_before_the_name_of_the_file(folder, tmp_path):
    (tmp_path / "names").write_text("a.jpg\n")
    assert _content(open_source(str(tmp_path / "names"), "list", image_root=str(folder)))[0][2] == b"first"
    _tar(tmp_path / "x", [("0.jpg", b"one")])
    with pytest.raises(AlignDetError, match="is a file: a source of kind folder is a folder"):
        open_source(str(tmp_path / "names"), "folder")


def test_a_container_whose_name_does_not_say_so_is_refused_before_its_images_are(tmp_path):
    _tar(tmp_path / "x.wds", [("0.jpg", b"one")])
    with pytest.raises(
        AlignDetError, match=r"x\.wds: a file of kind webdataset has a name that ends with \.tar"
    ):
        open_source(str(tmp_path / "x.wds"), "webdataset")


def test_a_row_larger_than_any_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("proposals.image_roots.MAX_IMAGE_BYTES", 4)
    pq.write_table(pa.table({"raw": [b"four", b"five5"]}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.read("a.parquet/0") == b"four"
    assert _reason(source, "a.parquet/1") == "too_large"


def test_braces_of_a_name_that_is_there_are_part_of_it(folder, tmp_path):
    folder.rename(tmp_path / "my{photos}")
    assert len(_content(open_source(str(tmp_path / "my{photos}")))) == 3
    with pytest.raises(AlignDetError, match="its braces do not close"):
        open_source(str(tmp_path / "photos{x"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "list.txt",
            {"glob": "*.png"},
            "--glob .* for sources of kind folder and webdataset, .* of kind list",
        ),
        ("in", {"column": "image"}, "--image-column image is for sources of kind parquet and arrow"),
        ("in", {"image_root": "/x"}, "--image-root /x is for sources of kind list and coco"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(folder, tmp_path, name, options, message):
    (tmp_path / "list.txt").write_text("in/a.jpg\n")
    with pytest.raises(AlignDetError, match=message):
        open_source(str(tmp_path / name), **options)


_LISTINGS = """
import collections
import os
import sys

from pipeline.sources import open_source

listed = collections.Counter()
# A folder that is listed tells the interpreter; it cannot be told to stop listening, hence a process of its own.
sys.addaudithook(lambda event, values: listed.update([os.fspath(values[0])] if event == "os.scandir" else []))
source = open_source(sys.argv[1])
print(source.kind, *source.tars, *source.left_out)
for folder in ("", "/a", "/a/shards", "/b"):
    print(listed[sys.argv[1] + folder])
"""


def test_a_folder_of_tars_whose_kind_is_not_said_is_listed_once(mined_dataset, tmp_path):
    root = tmp_path / "tars"
    shutil.copytree(mined_dataset, root / "a")
    (root / "b").mkdir()
    _tar(root / "b" / "x.tar", [("0.jpg", b"one")])
    done = subprocess.run([sys.executable, "-c", _LISTINGS, root], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["webdataset", "b/x.tar", "a", "1", "1", "1", "1"]


def test_what_cannot_be_guessed_is_asked_for(tmp_path):
    _tar(tmp_path / "x.tar", [("0.jpg", b"one")])
    pq.write_table(pa.table({"one": [b"x"], "two": [b"y"]}), tmp_path / "a.parquet")
    for name, message in {
        str(tmp_path): "--source-kind",
        str(tmp_path / "a.parquet"): "--image-column",
        str(tmp_path / "gone"): "neither a folder nor a file",
        str(tmp_path / "gone.txt"): "no file",
        "http://127.0.0.1:9/folder": "cannot be listed",
        "ftp://x/y": "not allowed",
        "file:///etc": "not allowed",
    }.items():
        with pytest.raises(AlignDetError, match=message):
            list(open_source(name).entries())
    assert len(_content(open_source(str(tmp_path), "webdataset"))) == 1
    assert _content(open_source(str(tmp_path / "a.parquet"), column="two"))[0][2] == b"y"


def test_capitals_in_a_containers_name_change_nothing(tmp_path):
    _tar(tmp_path / "X.TAR", [("0.JPG", b"one")])
    pq.write_table(pa.table({"raw": [b"x", b"y"]}), tmp_path / "A.Parquet")
    with pa.ipc.new_file(tmp_path / "B.ARROW", pa.schema({"raw": pa.binary()})) as writer:
        writer.write_table(pa.table({"raw": [b"z"]}))
    found = {
        "X.TAR": [("X.TAR/512+3/0.JPG", 3, b"one")],
        "A.Parquet": [("A.Parquet/0", -1, b"x"), ("A.Parquet/1", -1, b"y")],
        "B.ARROW": [("B.ARROW/0", -1, b"z")],
    }
    for name, content in found.items():
        assert _content(open_source(str(tmp_path / name))) == content
    for kind, name in (("webdataset", "X.TAR"), ("parquet", "A.Parquet"), ("arrow", "B.ARROW")):
        assert _content(open_source(str(tmp_path), kind)) == found[name]


def test_a_link_to_a_file_without_a_suffix_is_what_its_own_name_says(folder, tmp_path):
    blobs, snapshot = (
        tmp_path / "blobs",
        folder / "snapshot",
    )  # as the caches of Hugging Face and DVC have them
    blobs.mkdir()
    snapshot.mkdir()
    pq.write_table(pa.table({"raw": [b"x"]}), blobs / "1f")
    _tar(blobs / "2f", [("0.jpg", b"one")])
    (blobs / "3f").write_text("own.jpg\n")
    for name, blob in (("a.parquet", "1f"), ("b.tar", "2f"), ("c.txt", "3f")):
        (snapshot / name).symlink_to(blobs / blob)
    (snapshot / "own.jpg").write_bytes(b"its own")
    assert _content(open_source(str(snapshot / "a.parquet"))) == [("a.parquet/0", -1, b"x")]
    assert _content(open_source(str(snapshot / "b.tar"))) == [("b.tar/512+3/0.jpg", 3, b"one")]
    assert open_source(str(snapshot / "c.txt")).read("own.jpg") == b"its own"
    (tmp_path / "photos.txt").symlink_to(folder)
    assert open_source(str(tmp_path / "photos.txt")).images.root == str(folder)


_STRUCT = pa.struct([("bytes", pa.list_(pa.uint8())), ("path", pa.string())])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "cells", [pa.array([5]), pa.array([[b"x"]]), pa.array([{"bytes": [1], "path": "a"}], _STRUCT)], ids=str
)
def test_a_column_that_holds_no_images_is_neither_taken_nor_allowed(tmp_path, cells, suffix):
    table = pa.table({"image": cells})
    path = str(tmp_path / f"a.{suffix}")
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(AlignDetError, match=r"which column of .* holds the images"):
        open_source(path)
    for column in ("image", "imgae"):
        with pytest.raises(AlignDetError, match=f"no column {column} that can hold images. It has image"):
            open_source(path, column=column)


def test_a_column_is_looked_for_in_the_first_table_that_can_be_read(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 broken")
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"]}), tmp_path / "b.parquet")
    assert [reason for *_, reason in _content(open_source(f"{tmp_path}/b.parquet", column="right"))] == [b"y"]
    source = open_source(str(tmp_path), column="right")
    assert [entry.uri for entry in source.entries()] == ["a.parquet", "b.parquet/0"]
    with pytest.raises(AlignDetError, match=r"b\.parquet has no column middle"):
        open_source(str(tmp_path), column="middle")


@pytest.mark.parametrize("suffix", ["tar", "parquet", "arrow"])
def test_a_container_whose_name_is_no_utf8_gives_all_its_images(tmp_path, suffix):
    place = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    place.mkdir()
    _write_container(place / f"all.{suffix}", {"a.jpg": b"first", "b.jpg": b"second"})
    kind = {"tar": "webdataset"}.get(suffix, suffix)
    column = None if suffix == "tar" else "image"
    names = (f"caf\\xe9/all.{suffix}",)
    classes = {"webdataset": TarSource, "parquet": ParquetSource, "arrow": ArrowSource}
    source = classes[kind](str(tmp_path), names, *([column] if column else []))
    assert [data for *_, data in _content(source)] == [b"first", b"second"]


def _write_container(path, images):
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for name, data in images.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return
    table = pa.table({"image": list(images.values())})
    with path.open("wb") as file:
        if path.suffix == ".parquet":
            pq.write_table(table, file)
        else:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_quotation_mark_that_nothing_closes_takes_no_other_line_with_it(folder, suffix):
    mark = {".csv": ",", ".tsv": "\t"}[suffix]
    lines = [("path", "label"), ("a.jpg", "1"), ('"b/c.png', "2"), ("z.webp", "3"), ("z.webp", "4")]
    (folder / f"list{suffix}").write_text("".join(f"{mark.join(line)}\n" for line in lines))
    source = open_source(str(folder / f"list{suffix}"))
    with pytest.raises(AlignDetError, match=rf"list\{suffix}, line 3, is no CSV: .*quotation mark"):
        list(source.entries())
    lines[2] = ("b/c.png", '"closed by the next one')
    lines[4] = ('"z.webp', "4")
    (folder / f"list{suffix}").write_text("".join(f"{mark.join(line)}\n" for line in lines))
    with pytest.raises(AlignDetError, match="line 3, is no CSV"):
        list(source.entries())


def test_quotation_marks_that_are_closed_on_their_line_or_in_the_cells_last_are_none_to_ask_about(folder):
    text = 'path,label\n"a.jpg",5" wide\nb/c.png,"Peanuts" comic\nz.webp,"two\nlines, and ""marks"""\n'
    (folder / "list.csv").write_text(text)
    assert [entry.uri for entry in open_source(str(folder / "list.csv")).entries()] == list(_COLORS)


@pytest.mark.parametrize(("file", "below"), [("x.parquet", "2023"), ("x.tar", "1+2"), ("x.PARQUET", "7")])
def test_a_container_that_cannot_be_told_from_a_row_of_another_stops_the_job(tmp_path, file, below):
    place = tmp_path / file / below / f"part{file[1:].lower()}"
    place.parent.mkdir(parents=True)
    _write_container(place, {"a.jpg": b"first"})
    source = open_source(str(tmp_path))
    with pytest.raises(AlignDetError, match=rf"in a folder named {file}, .*Rename that folder"):
        list(source.entries())


def test_a_list_in_utf16_is_said_to_be_one(folder):
    (folder / "list.txt").write_text("a.jpg\n", encoding="utf-16")
    with pytest.raises(AlignDetError, match=r"list\.txt is UTF-16"):
        list(open_source(str(folder / "list.txt")).entries())


def test_a_link_spares_a_dataset_a_name_that_it_cannot_keep(folder, tmp_path):
    """As the message for such a name advises."""
    odd = folder.rename(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    (tmp_path / "link").symlink_to(odd)
    source = open_source(str(tmp_path / "link"))
    assert source.images.root == str(tmp_path / "link")
    assert [data for *_, data in _content(source)] == list(_COLORS.values())
