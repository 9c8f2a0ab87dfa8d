"""Hostile values in metadata are refused before anything is allocated for them."""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proposals.dataset import bounds, layout, open_dataset
from proposals.dataset.manifest import read_record
from proposals.dataset.seal import seal, seal_state
from proposals.errors import AlignDetError

_PEAK = 32 * 2**20


@pytest.fixture(autouse=True)
def _little_memory(mined_dataset):
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < _PEAK


def test_a_table_may_declare_no_more_rows_and_no_more_boxes_than_fit():
    size = 10 * bounds.MIN_ROW_BYTES
    most = size * bounds.MAX_BOXES_PER_BYTE
    assert bounds.has_room(size, 10, most)
    assert not bounds.has_room(size, 11, 1)
    assert not bounds.has_room(size, 1, most + 1)


def test_a_row_group_may_have_as_many_rows_as_are_allowed_and_not_one_more(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": range(20)}), path, row_group_size=10)
    assert [len(part) for part in bounds.read_row_groups(path, 10, 8, 2**30)] == [10, 10]
    with pytest.raises(AlignDetError, match="10 rows in one group"):
        list(bounds.read_row_groups(path, 9, 8, 2**30))


def _rewrite(path, change):
    """Change the JSON file as one who knows the format would: with a fitting seal."""
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)
    path.write_bytes(seal(json.dumps(content, indent=1).encode() + b"\n"))


def _set(*place):
    *parents, name, value = place

    def change(content):
        for parent in parents:
            content = content[parent]
        content[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("shards", 0, "images", 10**12),
        _set("shards", 0, "images", 1_000_000),
        _set("shards", 0, "images", -1),
        _set("shards", 0, "proposals", 2**31 - 1),
        _set("shards", 0, "proposals", 0),
        _set("shards", 0, "name", "../../etc"),
        _set("shards", 1, "name", "00000"),
        _set("shards", 0, "tar", "path", "../outside.tar"),
        _set("shards", 0, "tar", "bytes", 2**80),
        _set("shards", 0, "tar", None),
        _set("shards", 0, "statuses", {"ok": 10**15}),
        _set("shards", 0, "parquet", "sha256", "0"),
        _set("plan", "path", "../plan.parquet"),
        _set("consolidated", [{"path": "proposals.zarr/../../x", "bytes": 1, "sha256": "0" * 64}]),
        _set("totals", "images", 10**30),
        _set("totals", "proposals", 1),
        _set("source", "images", 9),
        _set("images_per_shard", 10**9),
        _set("recipe", "max_side", 10**9),
    ],
)
def test_a_manifest_that_declares_the_impossible(copy, change):
    _rewrite(copy / layout.MANIFEST, change)
    with pytest.raises(AlignDetError, match=r"dataset\.json cannot be read as Manifest"):
        open_dataset(copy)


def test_a_file_of_metadata_that_is_too_large(copy):
    for path, limit, read in [
        (copy / layout.MANIFEST, bounds.MAX_MANIFEST_BYTES, lambda path: open_dataset(path.parent)),
        (layout.record_path(copy, "00000"), bounds.MAX_RECORD_BYTES, read_record),
    ]:
        with path.open("r+b") as stream:
            stream.truncate(limit + 1)  # sparse: it takes no disk
        with pytest.raises(AlignDetError, match=f"the format allows {limit}"):
            read(path)


def _replace_table(root, table, name="00000", **options):
    pq.write_table(table, layout.parquet_path(root, name), compression="zstd", **options)


def _with(table, name, values):
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), values)


def _table(root, name="00000"):
    return pq.read_table(layout.parquet_path(root, name)).combine_chunks()


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 10**6])
def test_a_footer_length_beyond_the_file(copy, length):
    path = layout.parquet_path(copy, "00000")
    data = bytearray(path.read_bytes())
    data[-8:-4] = length.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(AlignDetError, match="declares a footer"):
        open_dataset(copy)[0]


def test_more_rows_than_the_manifest_says(copy):
    table = _table(copy)
    _replace_table(copy, pa.concat_tables([table] * 1000))
    with pytest.raises(AlignDetError, match="has 3000 rows"):
        open_dataset(copy)[0]


def test_a_column_that_unpacks_to_gigabytes(copy):
    huge = pa.array(["x" * (20 * 2**20)] * 3, pa.string())
    _replace_table(copy, _with(_table(copy), "uri", huge), use_dictionary=False)
    assert layout.parquet_path(copy, "00000").stat().st_size < 2**20
    del huge
    tracemalloc.reset_peak()
    with pytest.raises(AlignDetError, match="declares 629"):
        open_dataset(copy)[0]


def test_lists_longer_or_shorter_than_declared(copy):
    table = _table(copy)
    ranks = table.column("rank").to_pylist()
    _replace_table(
        copy,
        _with(
            table,
            "rank",
            pa.array([[*ranks[0], 1.0], *ranks[1:]], pa.list_(pa.float32())).cast(
                table.schema.field("rank").type
            ),
        ),
    )
    with pytest.raises(AlignDetError, match="lists of different lengths"):
        open_dataset(copy)[0]
    _rewrite(copy / layout.MANIFEST, _more_boxes)
    _replace_table(copy, table)
    with pytest.raises(AlignDetError, match=r"dataset\.json says"):
        open_dataset(copy)[0]


def _more_boxes(content):
    content["shards"][0]["proposals"] += 1
    content["totals"]["proposals"] += 1


@pytest.mark.parametrize(
    ("offset", "size"), [(2**62, 10), (-512, 10), (0, 10), (512, 2**62), (512, -1), (2**63 - 1, 2**63 - 1)]
)
def test_an_image_outside_its_tar(copy, offset, size):
    table = _table(copy)
    for name, value in (("tar_offset", offset), ("tar_size", size)):
        table = _with(table, name, pa.array(np.array([value] * 3, np.int64)))
    _replace_table(copy, table)
    with pytest.raises(AlignDetError, match="the image of row 0 would be at bytes"):
        open_dataset(copy)[0]


def test_a_tar_cut_after_it_was_opened(copy):
    record = open_dataset(copy)[0]
    record.tar.write_bytes(record.tar.read_bytes()[: record.offset + record.size - 1])
    with pytest.raises(AlignDetError, match="ends inside the image"):
        record.image_bytes()


def test_missing_and_foreign_columns(copy):
    table = _table(copy)
    _replace_table(copy, table.drop_columns(["rank"]))
    with pytest.raises(AlignDetError, match="no column rank"):
        open_dataset(copy)[0]
    _replace_table(copy, table.set_column(3, "width", pa.array(["1", "2", "3"])))
    with pytest.raises(AlignDetError, match="column width is string, the format says int32"):
        open_dataset(copy)[0]
    _replace_table(copy, table.append_column("novelty", pa.array([1, 2, 3])))
    assert len(open_dataset(copy)[0].boxes)


def test_every_bit_of_a_sealed_file_matters():
    text = seal(b'{\n "a": 1,\n "b": "x"\n}\n')
    assert json.loads(text) == {"a": 1, "b": "x", "digest": json.loads(text)["digest"]}
    assert seal_state(text) == "intact"
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        assert seal_state(bytes(changed)) != "intact"
