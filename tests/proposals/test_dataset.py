"""A finished dataset as a sequence, and the folders that are refused."""

import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from proposals.dataset import layout, open_dataset
from proposals.dataset.seal import seal
from proposals.errors import AlignDetError
from proposals.images import decode_bgr


@pytest.fixture(scope="module")
def dataset(mined_dataset):
    return open_dataset(mined_dataset)


def test_it_is_a_sequence_in_source_order(dataset, photos):
    expected = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    assert [record.uri for record in dataset] == expected
    assert len(dataset) == 8
    assert dataset[-1].key == dataset[7].key == dataset[5:][-1].key
    assert [r.uri for r in dataset[1:6:2]] == expected[1:6:2]
    for outside in (8, -9):
        with pytest.raises(IndexError):
            dataset[outside]


def test_records_hold_the_image_and_boxes_inside_it(dataset, photos):
    for record in dataset:
        data = record.image_bytes()
        image = decode_bgr(data)
        assert data == (photos / record.uri).read_bytes()
        assert (record.width, record.height) == (image.width, image.height)
        assert record.boxes.dtype == record.rank.dtype == np.float32
        assert record.boxes.shape == (len(record.rank), 4)
        assert (record.boxes >= 0).all()
        assert (record.boxes <= [record.width, record.height] * 2).all()
        assert (np.diff(record.rank) > 0).all()
        record.boxes[:] = 0  # a reader may write on its copy ...
    assert dataset[0].boxes.any()  # ... without harming the dataset


def test_shards_are_exposed_for_sampling(dataset):
    assert dataset.shard_sizes.tolist() == [3, 3, 2]
    assert [dataset.locate(i) for i in (0, 4, -1)] == [(0, 0), (1, 1), (2, 1)]
    assert [(record.shard, record.row) for record in dataset] == [dataset.locate(i) for i in range(8)]


def test_parquet_tar_and_reader_agree(dataset, mined_dataset):
    for record in dataset:
        with tarfile.open(record.tar) as tar:
            annotation = json.load(tar.extractfile(f"{record.key}.json"))
            member = tar.getmember(f"{record.key}.jpg")
        assert (member.offset_data, member.size) == (record.offset, record.size)
        assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
        assert np.array_equal(np.float32(annotation["boxes"]), record.boxes)
        assert np.array_equal(np.float32(annotation["ranks"]), record.rank)
        assert (annotation["width"], annotation["height"], annotation["uri"]) == (
            record.width,
            record.height,
            record.uri,
        )


def test_columns_are_read_without_the_boxes(dataset):
    table = dataset.table(["key", "width"])
    assert table.column_names == ["key", "width"]
    assert table.column("key").to_pylist() == [record.key for record in dataset]


def test_the_manifest_adds_up(dataset, mined_dataset):
    totals = dataset.manifest.totals
    assert totals.images == len(dataset)
    assert totals.proposals == sum(len(record.rank) for record in dataset)
    assert totals.statuses == {"ok": 8}
    files = [entry for shard in dataset.manifest.shards for entry in (shard.tar, shard.parquet)]
    files += [dataset.manifest.plan, dataset.manifest.rejected]
    for entry in files:
        path = mined_dataset / entry.path
        assert path.stat().st_size == entry.bytes
        assert layout.TEMPORARY_MARK not in entry.path
    on_disk = {
        path.relative_to(mined_dataset).as_posix() for path in mined_dataset.rglob("*") if path.is_file()
    }
    records = {f"shards/{name}.json" for name in dataset.shard_names}
    assert on_disk == {entry.path for entry in files} | records | {layout.MANIFEST}


def test_it_travels_to_other_processes_as_a_path(dataset):
    dataset[0]
    sent = pickle.dumps(dataset)
    assert len(sent) < 500
    assert pickle.loads(sent)[3].key == dataset[3].key


def test_threads_share_it(dataset):
    def read(i):
        return len(dataset.image_bytes(i % 8)), dataset[i % 8].boxes.sum()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(200))) == [read(i) for i in range(200)]


def test_an_unfinished_folder_is_refused_with_the_way_on(copy):
    (copy / layout.MANIFEST).unlink()
    with pytest.raises(AlignDetError, match=r"in progress, not a dataset: 3 shards .* again to resume"):
        open_dataset(copy)


def test_any_other_folder_is_refused(tmp_path):
    with pytest.raises(AlignDetError, match="not a proposal dataset"):
        open_dataset(tmp_path)


def test_who_names_something_near_a_dataset_is_told_what_to_name(copy, photos, tmp_path):
    (tmp_path / "new").mkdir()
    for name, advice in (
        (photos, rf"folder of its own: aligndet mine {photos} OUT"),
        (copy / "shards", rf"Name the dataset: {copy}$"),
        (copy / layout.MANIFEST, rf"Name the dataset: {copy}$"),
        (tmp_path / "new", r"Make one: aligndet mine IMAGES .*new$"),
        (tmp_path / "gone", r"Make one: aligndet mine IMAGES .*gone$"),
        ("http://127.0.0.1:9/ds", "cannot be reached"),
    ):
        with pytest.raises(AlignDetError, match=advice):
            open_dataset(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "2.0"}, "newer than"),
        ({"format_version": "one"}, "cannot be read"),
        ({"format": "other"}, "not the manifest"),
        ({"totals": None}, "cannot be read"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(copy, change, message):
    path = copy / layout.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AlignDetError, match=message):
        open_dataset(copy)


def test_a_newer_minor_version_is_read(copy):
    path = copy / layout.MANIFEST
    content = json.loads(path.read_text()) | {"format_version": "1.7", "novelty": [1]}
    del content["digest"]
    path.write_bytes(seal(json.dumps(content, indent=1).encode() + b"\n"))
    assert len(open_dataset(copy)) == 8


def test_a_manifest_changed_by_hand_is_refused(copy):
    path = copy / layout.MANIFEST
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(AlignDetError, match="its digest does not fit"):
        open_dataset(copy)


def test_a_manifest_whose_digest_is_out_of_its_place_is_refused(copy):
    path = copy / layout.MANIFEST
    path.write_text(path.read_text() + "\n")
    with pytest.raises(AlignDetError, match="its digest does not fit"):
        open_dataset(copy)


def test_damage_is_named(copy):
    opened = open_dataset(copy)
    tar = layout.tar_path(copy, "00001")
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(AlignDetError, match=r"00001\.tar has 2000 bytes, dataset\.json says"):
        opened[5].image_bytes()
    layout.parquet_path(copy, "00002").unlink()
    with pytest.raises(AlignDetError, match=r"00002\.parquet cannot be read"):
        opened[7]
    shutil.copy(layout.parquet_path(copy, "00000"), layout.parquet_path(copy, "00002"))
    with pytest.raises(AlignDetError, match="has 3 rows"):
        opened[7]


def test_keys_are_unique_plain_and_short():
    uris = ["a.b/c d.jpg", "a.b/c.d.jpg", "a/c d.jpg", "ä/ö.png", f"{'x' * 300}.jpg", ".jpg", "日本.webp"]
    keys = [layout.key_of(uri) for uri in uris]
    assert len(set(keys)) == len(uris)
    assert all(key.isascii() and not set(key) & set("./ ") and len(key) < 80 for key in keys)


def test_a_members_extension_is_that_of_an_image_or_none():
    known = {
        "a.JPEG": "jpg",
        "b.Png": "png",
        "c.tiff": "tif",
        "d/e.jfif": "jfif",
        "x.tar/512+3/f.WEBP": "webp",
    }
    urls = {"https://h/a.jpg?w=640&h=480#top": "jpg", "https://h/a?of=b.jpg": "jpg", "s3://b/a#1?.jpg": "jpg"}
    others = dict.fromkeys(
        ("a", "a.parquet/2", "a.pyd", "a.json", "a.jpg?w=640", "a.jpé", "a.tar", ".jpg"), "bin"
    )
    for uri, extension in {**known, **urls, **others}.items():
        assert layout.image_extension(uri) == extension, uri


def test_the_parquet_schema_is_the_documented_one(mined_dataset):
    schema = pq.read_schema(layout.parquet_path(mined_dataset, "00000"))
    assert [(field.name, str(field.type)) for field in schema] == [
        ("key", "string"),
        ("uri", "string"),
        ("sha256", "string"),
        ("width", "int32"),
        ("height", "int32"),
        ("orientation", "int8"),
        ("boxes", "list<element: fixed_size_list<element: float not null>[4] not null>"),
        ("rank", "list<element: float not null>"),
        ("status", "string"),
        ("tar_offset", "int64"),
        ("tar_size", "int64"),
    ]


_READS = """
import sys
from proposals.dataset import open_dataset
from proposals.rows import iterate_rows

dataset = open_dataset(sys.argv[1])
assert sum(len(rows.rank) for rows in iterate_rows(dataset)) == dataset.manifest.totals.proposals
assert len(dataset[0].boxes) and dataset[0].image_bytes()
assert "pandas" not in sys.modules
"""


def test_reading_does_not_import_pandas(mined_dataset):
    subprocess.run([sys.executable, "-c", _READS, str(mined_dataset)], check=True)
