"""Datasets made by a stranger, every hash and seal in place: refused before memory is taken, or read as they say."""

import json
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proposals.convert.hub import write_hub_folder
from proposals.dataset import layout, open_dataset
from proposals.dataset.seal import seal
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.sheet import contact_sheet


def _nested(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


def _manifest_with(text):
    def change(root):
        path = root / layout.MANIFEST
        content = path.read_bytes().rstrip()
        body = content[: content.rindex(b',\n "digest"')]
        path.write_bytes(seal(body + b",\n " + text + b"\n}\n"))

    return change


RAW = {
    "nested_without_end": (_manifest_with(b'"novelty": ' + _nested(10**5)), "recursion limit"),
    "another_recipe_later_on": (_manifest_with(b'"recipe": {"mode": "slow"}'), "recipe"),
    "a_number_without_end": (_manifest_with(b'"images_per_shard": ' + b"9" * 5000), "cannot be read"),
    "no_number": (_manifest_with(b'"images_per_shard": NaN'), "images_per_shard"),
    "an_infinite_number": (_manifest_with(b'"images_per_shard": 1e999'), "images_per_shard"),
    "no_text": (_manifest_with(b'"a": "\xff\xfe"'), "cannot be read"),
    "half_a_character": (_manifest_with(b'"images": {"kind": "list", "root": "\\ud800"}'), "cannot be read"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_hostile_manifest_is_refused(confined, copy, name):
    change, words = RAW[name]
    change(copy)
    for reader in ("dataset", "verified"):
        outcome = confined.read(reader, copy, megabytes=128)
        assert outcome.kind == ("refused" if reader == "dataset" else "value"), outcome
        assert words in outcome.text


PLACES = {
    "shard": lambda content: content["shards"][0]["tar"].update(path="../../etc/passwd"),
    "shard_absolute": lambda content: content["shards"][0]["parquet"].update(path="/etc/passwd"),
    "shard_elsewhere": lambda content: content["shards"][0]["tar"].update(path="http://h/x.tar"),
    "plan": lambda content: content["plan"].update(path="pipe:cat"),
    "rejected": lambda content: content["rejected"].update(path="../rejected.parquet"),
    "array": lambda content: content.update(
        consolidated=[{"path": "proposals.zarr/../../x", "bytes": 1, "sha256": "0" * 64}]
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_manifest_names_no_file_outside_its_folder(confined, copy, reseal, name):
    reseal(copy, PLACES[name])
    outcome = confined.read("dataset", copy)
    assert (outcome.kind, "cannot be read as Manifest" in outcome.text) == ("refused", True)


@pytest.fixture
def referring(photos, mine_folder, tmp_path):
    images = shutil.copytree(photos, tmp_path / "images")
    return mine_folder(images, tmp_path / "out", embed=False)


def _images(kind, root):
    return lambda content: content.update(images={"kind": kind, "root": root})


@pytest.mark.parametrize(
    ("kind", "root", "words"),
    [
        ("folder", "/etc", "missing"),
        ("list", "file:///etc", "not_allowed"),
        ("folder", "simplecache::file:///etc", "missing"),
        ("list", "pipe:cat", "missing"),
        ("folder", "local://etc", "not_allowed"),
        ("webdataset", "/etc", "broken_container"),
        ("parquet", "/etc", "broken_container"),
        ("folder", "/proc/self/fd", "missing"),
        ("folder", "", "missing"),
    ],
)
def test_where_images_are_said_to_be_runs_and_opens_nothing_else(
    confined, referring, reseal, kind, root, words
):
    reseal(referring, _images(kind, root))
    outcome = confined.read("dataset", referring, seconds=20)
    assert outcome.kind == "refused", outcome
    assert words in outcome.text


def test_a_dataset_on_a_web_server_may_not_name_files_of_this_machine(referring, monkeypatch):
    from proposals.dataset import reader

    manifest = reader.read_manifest(referring)
    with pytest.raises(AlignDetError, match="may not name local files"):
        reader.refuse_pointing_here("https://stranger.example/dataset", manifest)
    reader.refuse_pointing_here("s3://mine/dataset", manifest)


def _rewritten(root, change, **options):
    path = layout.parquet_path(root, "00000")
    pq.write_table(change(pq.read_table(path).combine_chunks()), path, compression="zstd", **options)


def _with(name, values, kind=None):
    def change(table):
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        return table.set_column(
            place, pa.field(name, kind or field.type, nullable=field.nullable), values(table)
        )

    return change


def _floats(name, value):
    def change(table):
        rows = table.column(name).to_pylist()
        if name == "boxes":
            rows[0][0][0] = value
        else:
            rows[0][0] = value
        return _with(name, lambda table: pa.array(rows, table.schema.field(name).type))(table)

    return change


def _no_text(table):
    values = pa.array([b"\xff\xfe", b"b", b"c"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, values.buffers())
    return _with("uri", lambda table: text)(table)


TABLES = {
    "a_box_that_is_no_number": (_floats("boxes", np.nan), "is not finite"),
    "a_box_beyond_the_image": (_floats("boxes", -2000.0), "leaves the image"),
    "a_box_of_nothing": (_floats("boxes", 9999.0), "is empty"),
    "an_infinite_box": (_floats("boxes", np.inf), "is not finite"),
    "a_rank_that_is_no_number": (_floats("rank", np.nan), "is not finite"),
    "a_uri_that_is_no_text": (_no_text, "nvalid"),
    "boxes_of_doubles": (
        _with(
            "rank", lambda table: table.column("rank").cast(pa.list_(pa.float64())), pa.list_(pa.float64())
        ),
        "the format says",
    ),
    "offsets_below_zero": (
        _with("tar_offset", lambda table: pa.array([-512, 1, 2], pa.int64())),
        "would be at bytes",
    ),
    "an_image_of_exabytes": (
        _with("tar_size", lambda table: pa.array([2**62, 1, 2], pa.int64())),
        "would be at bytes",
    ),
    "fewer_rows": (lambda table: table.slice(1), "rows"),
    "an_unknown_column_of_texts_in_lists": (
        lambda table: table.append_column("novelty", pa.array([["x"]] * 3)),
        None,
    ),
    "overlapping_images": (_with("tar_offset", lambda table: pa.array([512, 512, 513], pa.int64())), None),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_is_refused_or_read_as_it_says(confined, copy, reseal, name, tmp_path):
    change, words = TABLES[name]
    _rewritten(copy, change)
    reseal(copy)
    outcome = confined.read("dataset", copy, megabytes=128)
    assert outcome.kind == ("refused" if words else "value"), outcome
    assert (words or "") in outcome.text
    outcome = confined.read("verified", copy, megabytes=128)
    assert outcome.kind == "value"
    assert outcome.text != "[]" or name.startswith("an_unknown")
    with pytest.raises(AlignDetError, match=words) if words else nullcontext():
        write_hub_folder(open_dataset(copy), tmp_path / "hub", "name", "mit")


def _false(total, value):
    def change(content):
        content["totals"][total] = value

    return change


@pytest.mark.parametrize(
    ("total", "value"), [("bytes", 10**15), ("bytes", 0), ("statuses", {"fallback_no_size": 3})]
)
def test_totals_that_lie_are_named(copy, reseal, total, value):
    reseal(copy, _false(total, value))
    (problem,) = verify_dataset(copy).problems
    assert problem.file == layout.MANIFEST
    assert f"totals.{total} is {value}" in problem.what


def test_boxes_are_not_drawn_on_an_image_of_another_size(copy, reseal):
    _rewritten(copy, _with("width", lambda table: pa.array([9999] * 3, pa.int32())))
    reseal(copy)
    with pytest.raises(AlignDetError, match="its boxes are for 9999 x"):
        contact_sheet(open_dataset(copy), 1, 3)


def test_boxes_of_an_image_that_is_turned_otherwise_are_not_learned(copy, reseal):
    from aligndet_train.stream import ProposalStream

    assert ProposalStream(open_dataset(copy))[0, 0].key
    _rewritten(copy, _with("orientation", lambda table: pa.array([3] * 3, pa.int8())))
    reseal(copy)
    with pytest.raises(AlignDetError, match=r"EXIF orientations 1 and 3"):
        ProposalStream(open_dataset(copy))[0, 0]


def _nullable(name, value):
    def change(table):
        column = pa.array([value] * table.num_rows, table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return change


NAMES = {
    "as_it_should_be": (lambda table: table, "1"),
    "no_uri": (_nullable("uri", None), "column uri is"),
    "no_width": (_nullable("width", None), "column width is"),
    "no_column_of_uris": (lambda table: table.drop_columns("uri"), "it has no column uri"),
    "widths_of_text": (_with("width", lambda table: pa.array(["1"] * len(table)), pa.string()), "column width is"),
    "uris_that_are_no_text": (lambda table: _no_text(table) if len(table) == 3 else table, "nvalid"),
}  # fmt: skip


@pytest.mark.parametrize("shards", [["00000"], ["00000", "00001", "00002"]], ids=["one", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lie_are_refused_before_images_are_paired(confined, copy, reseal, name, shards):
    change, words = NAMES[name]
    for shard in shards:
        path = layout.parquet_path(copy, shard)
        pq.write_table(change(pq.read_table(path).combine_chunks()), path, compression="zstd")
    reseal(copy)
    outcome = confined.read("scored", copy, megabytes=256)
    assert outcome.kind == ("value" if name == "as_it_should_be" else "refused"), outcome
    assert words in outcome.text


def _many_rows(root, reseal, rows, table):
    """Make shard 00000 one of ``rows`` images in a tar that takes no disk."""
    with layout.tar_path(root, "00000").open("wb") as stream:
        stream.truncate(rows * 4096)
    pq.write_table(table, layout.parquet_path(root, "00000"), compression="zstd", store_schema=False)

    def declare(content):
        shard, totals = content["shards"][0], content["totals"]
        added = rows - shard["images"]
        totals["images"] += added
        content["source"]["images"] += added
        totals["proposals"] += rows - shard["proposals"]
        shard.update(images=rows, proposals=rows, statuses={"ok": rows})

    reseal(root, declare)


def test_one_text_for_ten_thousand_rows_is_not_copied_for_each(confined, copy, reseal):
    rows, names = 10_000, pq.read_schema(layout.parquet_path(copy, "00000"))
    long = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * (100 * 2**20)]))
    plain = {field.name: pa.array(["a"] * rows) for field in names if pa.types.is_string(field.type)}
    plain |= {
        name: pa.array([1] * rows, names.field(name).type) for name in ("width", "height", "orientation")
    }
    plain |= {"tar_offset": pa.array([512] * rows, pa.int64()), "tar_size": pa.array([9] * rows, pa.int64())}
    plain |= {"rank": pa.array([[1.0]] * rows, names.field("rank").type)}
    plain |= {"boxes": pa.array([[[0, 0, 1, 1]]] * rows, names.field("boxes").type)}
    table = pa.table({name: long if name == "uri" else plain[name] for name in names.names})
    _many_rows(copy, reseal, rows, table)
    assert layout.parquet_path(copy, "00000").stat().st_size < 2**20
    outcome = confined.read("dataset", copy, megabytes=700)
    assert outcome.kind == "refused", outcome
    assert "bytes of uri, more than the" in outcome.text


def test_a_run_of_a_billion_equal_numbers_is_not_unpacked(confined, copy, reseal):
    flat = pa.ListArray.from_arrays(
        pa.array([0, 30_000_000, 30_000_001, 30_000_002], pa.int32()), np.zeros(30_000_002, np.float32)
    )
    _rewritten(copy, _with("rank", lambda table: flat, flat.type))
    reseal(copy)
    outcome = confined.read("dataset", copy, megabytes=64)
    assert outcome.kind == "refused", outcome
    assert "declares" in outcome.text


_MANY = 4_000_000


@pytest.fixture
def bomb(copy, reseal):
    """A shard of four million boxes in 100 kB of table, whose tar is said to be as large as they need."""

    def boxes(table):
        ends = pa.array([0, _MANY - 2, _MANY - 1, _MANY], pa.int32())
        ranks = pa.array(np.ones(_MANY, np.float32))
        flat = pa.array(np.tile(np.array([0, 0, 1, 1], np.float32), _MANY))
        kind = table.schema.field("boxes").type
        rows = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
        table = _with("boxes", lambda table: pa.ListArray.from_arrays(ends, rows, type=kind))(table)
        kind = table.schema.field("rank").type
        return _with("rank", lambda table: pa.ListArray.from_arrays(ends, ranks, type=kind))(table)

    def declare(content):
        shard, totals = content["shards"][0], content["totals"]
        added, size = _MANY - shard["proposals"], 11 * _MANY
        totals["proposals"] += added
        totals["bytes"] += size - shard["tar"]["bytes"]
        shard["proposals"], shard["tar"]["bytes"] = _MANY, size

    _rewritten(copy, boxes)
    reseal(copy, declare)
    return copy


@pytest.mark.parametrize("reader", ["dataset", "columns", "verified"])
def test_a_tar_that_is_smaller_than_it_is_said_to_be_makes_no_room_for_boxes(confined, bomb, reader):
    assert layout.parquet_path(bomb, "00000").stat().st_size < 2**17
    outcome = confined.read(reader, bomb, megabytes=64)
    assert outcome.kind == ("value" if reader == "verified" else "refused"), outcome
    assert f"bytes, dataset.json says {11 * _MANY}" in outcome.text


def test_boxes_without_their_tars_have_the_room_of_their_table(confined, copy, reseal):
    tars = [layout.tar_path(copy, name) for name in ("00000", "00001", "00002")]
    for tar in tars[1:]:
        tar.unlink()
    tars[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert confined.read("columns", copy).kind == "value"
    size = 1 + 64 * layout.parquet_path(copy, "00000").stat().st_size

    def declare(content):
        content["totals"]["proposals"] += size - content["shards"][0]["proposals"]
        content["shards"][0].update(proposals=size, tar={**content["shards"][0]["tar"], "bytes": 11 * size})

    tars[0].unlink()
    reseal(copy, declare)
    outcome = confined.read("columns", copy)
    assert outcome.kind == "refused", outcome
    assert f"is too small for {size} boxes" in outcome.text


PLANS = {
    "rows_of_a_gigabyte": lambda table: table.set_column(2, "uri", pa.array(["x" * (60 * 2**20)] * 8)),
    "equal_rows_without_end": lambda table: table.take(pa.array(np.zeros(3 * 10**6, np.int32))),
    "shards_below_zero": lambda table: table.set_column(0, "shard", pa.array([-1] * 8, pa.int32())),
    "a_column_of_another_type": lambda table: table.set_column(0, "shard", pa.array(["0"] * 8)),
    "fewer_rows": lambda table: table.slice(2),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_lies_is_refused_or_named(confined, copy, reseal, name):
    path = copy / layout.PLAN
    table = pq.read_table(path)
    pq.write_table(
        PLANS[name](table).replace_schema_metadata(table.schema.metadata),
        path,
        compression="zstd",
        row_group_size=2**26,
    )
    reseal(copy)
    for reader in ("plan", "planned"):
        outcome = confined.read(reader, path, megabytes=256)
        assert outcome.kind in ("refused", "value"), outcome
    named = confined.read("verified", copy, megabytes=256)
    assert named.kind == "value", named
    assert "plan.parquet" in named.text


def _no_words(table):
    words = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    return table.set_column(3, "reason", words)


def _long(rows):
    words = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 2**20]))
    return lambda table: table.take(pa.array([0] * rows)).set_column(3, "reason", words)


REJECTED = {
    "as_it_should_be": (lambda table: table, "{'read: missing': 1}"),
    "no_column_of_reasons": (lambda table: table.drop_columns("reason"), "column reason must be string"),
    "reasons_that_are_numbers": (lambda table: table.set_column(3, "reason", pa.array([5])), "column reason must"),
    "no_reason": (lambda table: table.set_column(3, "reason", pa.array([None], pa.string())), "without nulls"),
    "reasons_that_are_no_text": (_no_words, "nvalid"),
    "more_rows": (lambda table: table.take(pa.array([0, 0])), "rows"),
    "one_long_reason_for_five_thousand": (_long(5000), "bytes of reason, more than the"),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_images_that_lie_are_refused(confined, copy, reseal, name):
    change, words = REJECTED[name]
    row = {
        "key": "k",
        "uri": "a.jpg",
        "stage": "read",
        "reason": "missing",
        "detail": "",
        "traceback_hash": "",
    }
    pq.write_table(change(pa.Table.from_pylist([row])), copy / layout.REJECTED)

    rows = 5000 if "five_thousand" in name else 1

    def declare(content):
        content["totals"]["rejected"] += rows
        content["source"]["images"] += rows

    reseal(copy, declare)
    outcome = confined.read("figures", copy, megabytes=128)
    assert outcome.kind == ("value" if name == "as_it_should_be" else "refused"), outcome
    assert words in outcome.text


def test_records_that_lie_are_refused(confined, copy):
    path = layout.record_path(copy, "00000")
    good = json.loads(path.read_text())
    del good["digest"]
    for change in (
        {"timing": {"total": "x"}}, {"rejected": [[]]}, {"shard": 5}, {"format_version": "9" * 50}, {"versions": 1},
    ):  # fmt: skip
        path.write_bytes(seal(json.dumps({**good, **change}, indent=1).encode() + b"\n"))
        outcome = confined.read("record", path)
        assert outcome.kind == "refused", outcome
    path.write_bytes(_nested(10**5))
    assert confined.read("record", path).kind == "refused"
    path.unlink()
    os.mkfifo(path)
    assert "plain file" in confined.read("record", path, seconds=20).text
