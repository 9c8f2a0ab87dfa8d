"""Lists and COCO jsons as a source: one from elsewhere reaches no file of this machine, and none breaks the job."""

import functools
import http.server
import json
import shutil
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.opening import open_source
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.images import ImageRejected
from proposals.recipe import Recipe

_SCHEMES = (
    "file:///etc/passwd", "FILE:///etc/passwd", "pipe:cat /etc/passwd", "pipe://cat", "local:///etc/passwd",
    "simplecache::file:///etc/passwd", "s3::file:///etc/passwd", "zip://a::file:///etc/passwd", "ftp://host/a.jpg",
    "data:image/png;base64,AAAA", "gopher://host/a", "dir:///etc", "github://a:b@/c", "reference://x", "git:///etc",
    "https://h/a.jpg::file:///etc/passwd", "\tfile:///etc/passwd",
)  # fmt: skip
_PATHS = ("/etc/passwd", "//etc/passwd", "../secret.jpg", "a/../../secret.jpg", "./../secret.jpg", ".", "..")


@pytest.fixture
def place(tmp_path):
    """A folder that a web server on loopback hands out, and beside it a file that nobody should see."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "ok.jpg").write_bytes(b"12345")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return folder


@pytest.fixture
def url(place):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=place)
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _outcomes(source):
    found = {}
    for entry in source.entries():
        try:
            found[entry.uri] = f"{len(source.read(entry.uri))} bytes"
        except ImageRejected as error:
            found[entry.uri] = error.reason
    return found


@pytest.mark.parametrize("form", ["list.txt", "list.csv", "list.json"])
@pytest.mark.parametrize("root", ["its own", "a local folder"])
def test_a_list_from_elsewhere_reads_no_local_file(place, url, form, root):
    names = [*_SCHEMES, *_PATHS, str(place.parent / "secret.jpg"), "ok.jpg"]
    if form.endswith("json"):
        text = json.dumps({"images": [{"file_name": name} for name in names]})
    else:
        text = "\n".join([*(["path"] if form.endswith("csv") else []), *names])
    (place / form).write_text(text)
    source = open_source(f"{url}/{form}", image_root=None if root == "its own" else str(place))
    outcomes = _outcomes(source)
    assert outcomes.pop("ok.jpg") == "5 bytes"
    assert len(outcomes) == len(names) - 1
    assert not any("bytes" in outcome for outcome in outcomes.values()), outcomes


@pytest.mark.parametrize("uri", [*_SCHEMES, *_PATHS[2:]])
def test_a_local_list_reads_nothing_but_paths_and_allowed_urls(place, uri):
    (place / "list.txt").write_text(f"ok.jpg\n{uri}\n")
    outcomes = _outcomes(open_source(str(place / "list.txt")))
    assert outcomes["ok.jpg"] == "5 bytes"
    assert outcomes[uri] in ("not_allowed", "missing", "is_a_directory")


def test_a_table_names_no_place_that_a_list_may_not(place):
    names = [*_SCHEMES, *_PATHS[2:], "ok.jpg"]
    cells = pa.array(
        [{"bytes": None, "path": name} for name in names],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": cells}), place / "a.parquet")
    outcomes = list(_outcomes(open_source(str(place / "a.parquet"))).values())
    assert outcomes[-1] == "5 bytes"
    assert set(outcomes[:-1]) <= {"not_allowed", "missing", "is_a_directory"}


def _named(name):
    return '{"images": [{"file_name": "ok.jpg"}, {"file_name": "' + name + '"}]}'


JSON = {
    "half_a_character": (_named("\\ud800.jpg"), "value", "missing"),
    "a_name_with_a_zero": (_named("a\\u0000.jpg"), "value", "bad_name"),
    "a_name_of_a_megabyte": (_named("a" * 10**6 + ".jpg"), "value", "bad_name"),
    "a_number_without_end": ('{"images": [{"file_name": "ok.jpg", "id": %s}]}' % ("9" * 5000), "refused", "digits"),
    "nesting_without_end": ('{"images": [{"file_name": "ok.jpg", "id": %s' % ("[" * 10**5), "refused", "recursion"),
    "a_value_of_40_megabytes": ('{"images": [{"file_name": "%s"}]}' % ("a" * 40 * 10**6), "refused", "characters"),
    "millions_of_objects_in_a_value": (
        '{"images": [{"file_name": "ok.jpg", "id": [%s0]}]}' % ("{}," * 9 * 10**6),
        "refused",
        "characters",
    ),
    "another_form": ("[1]", "refused", "not a JSON object"),
    "an_entry_of_nothing": ('{"images": [{"file_name": "ok.jpg"}, null]}', "value", "bad_name"),
    "an_entry_without_a_name": ('{"images": [{"file_name": "ok.jpg"}, {"id": 3}]}', "value", "bad_name"),
    "images_of_another_form": ('{"images": {"a": 1}}', "refused", "no file_name"),
    "no_text": (b"\xff\xfe\xff", "refused", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_a_json_is_a_source_or_refused(confined, place, name):
    content, kind, words = JSON[name]
    (place / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = confined.read("text_list", place / "a.json", megabytes=768)
    assert outcome.kind == kind, outcome
    assert words in outcome.text


LISTS = {
    "formulas": (
        b'path,n\nok.jpg,"=cmd|\' /C calc\'!A0"\n"=1+1.jpg",2\n',
        "csv",
        "value",
        "['5 bytes', 'missing']",
    ),
    "no_text": (b"ok.jpg\n\xff\xfe.jpg\n", "txt", "value", "['5 bytes', 'missing']"),
    "zeros": (b"ok.jpg\na\0b.jpg\n", "txt", "value", "['5 bytes', 'bad_name']"),
    "itself": (b"ok.jpg\nlist.txt\n.\n", "txt", "value", "['5 bytes', '"),
    "a_field_of_a_megabyte": (
        b"path\nok.jpg\n" + b"a" * 10**6 + b"\n",
        "csv",
        "value",
        "['5 bytes', 'bad_name']",
    ),
    "a_quote_that_never_ends": (b'path\nok.jpg\n"' + b"a\n" * 10**6, "csv", "refused", "quotation mark"),
    "no_column": (b"a,b\n1,2\n", "csv", "refused", "no column of images"),
    "one_image_twice": (b"ok.jpg\nok.jpg\n", "txt", "value", "['5 bytes']"),
    "many_rows_without_a_name": (
        b"path,n\n" + b",1\n" * 200 + b"ok.jpg,2\n",
        "csv",
        "value",
        "'bad_name', '5 bytes']",
    ),
    "no_row_with_a_name": (b"path,n\n" + b",1\n" * 200, "csv", "refused", "no entry of"),
    "rows_without_a_name": (b"path,n\nok.jpg,1\n,2\n , \n", "csv", "value", "['5 bytes', 'bad_name']"),
    "nothing": (b"\n\n", "txt", "refused", "names no image"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_a_source_or_refused(confined, place, name):
    content, suffix, kind, words = LISTS[name]
    (place / f"list.{suffix}").write_bytes(content)
    outcome = confined.read("text_list", place / f"list.{suffix}", megabytes=64)
    assert outcome.kind == kind, outcome
    assert words in outcome.text


def test_what_a_list_names_again_or_not_at_all_is_mined_once_or_rejected(
    place, photos, tmp_path, mine_folder
):
    shutil.copy(photos / "cat.jpg", place / "ok.jpg")
    (place / "list.csv").write_text("path,n\nok.jpg,1\n,2\nok.jpg,3\n")
    out = mine_folder(open_source(str(place / "list.csv")), tmp_path / "out", Recipe(max_side=64))
    report = verify_dataset(out, deep=True)
    assert (report.problems, report.images) == ((), 1)
    (rejected,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert rejected["uri"] == "list.csv/line 3 without a name"
    assert rejected["reason"] == "bad_name"


def _as_list(place, names):
    (place / "list.txt").write_text("\n".join(names))
    return place / "list.txt"


def _as_table(place, names):
    image = (place / "ok.jpg").read_bytes()
    cells = [{"bytes": image if name.startswith("\u00e9") else None, "path": name} for name in names]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), place / "a.parquet")
    return place / "a.parquet"


@pytest.mark.parametrize(("source", "mined"), [(_as_list, 1), (_as_table, 3)])
def test_names_of_megabytes_make_a_sound_dataset(place, photos, tmp_path, mine_folder, source, mined):
    shutil.copy(photos / "cat.jpg", place / "ok.jpg")
    endless = "\u00e9" * 2 * 10**6
    names = [f"{endless}1.jpg", f"{endless}2.jpg", "ok.jpg"]
    names += ["https://localhost:9/" + "a/" * 5000 + ".jpg", "data:image/jpeg;base64," + "A" * 10**6 + ".jpg"]
    out = mine_folder(open_source(str(source(place, names))), tmp_path / "out", Recipe(max_side=64))
    report = verify_dataset(out, deep=True)
    assert (report.problems, report.images) == ((), mined)
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    assert len(rejected) == 5 - mined
    # A row keeps the URL as it is, and nobody answers there.
    assert {row["reason"] for row in rejected} <= {"bad_name", "unreachable"}
    assert all(len(row["uri"].encode()) < 8200 for row in rejected)


def test_a_dataset_of_nothing_but_long_names_can_grow(place, photos, tmp_path, mine_folder):
    shutil.copy(photos / "cat.jpg", place / "ok.jpg")
    names = [f"https://localhost:9/{number}{'/a' * 5000}.jpg" for number in range(300)]
    for names_now in (names, [*names, "ok.jpg"]):
        out = mine_folder(
            open_source(str(_as_list(place, names_now))), tmp_path / "out", images_per_shard=300
        )
    report = verify_dataset(out)
    assert (report.problems, report.images) == ((), 1)


def test_a_web_server_is_no_folder():
    with pytest.raises(AlignDetError, match="cannot be listed"):
        open_source("http://127.0.0.1:9/images/")
    with pytest.raises(AlignDetError, match="not allowed"):
        open_source("file:///etc/list.txt")
