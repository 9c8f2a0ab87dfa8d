"""What we write is read by libraries that have never heard of us."""

import io

import numpy as np
import pytest
from PIL import Image

from proposals.dataset import open_dataset


@pytest.fixture(scope="module")
def ours(mined_dataset):
    return {record.key: record for record in open_dataset(mined_dataset)}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return str(tmp_path / "cache")


def _check_annotation(record, annotation):
    assert (annotation["width"], annotation["height"], annotation["uri"]) == (
        record.width,
        record.height,
        record.uri,
    )
    assert np.array_equal(np.float32(annotation["boxes"]), record.boxes)
    assert np.array_equal(np.float32(annotation["ranks"]), record.rank)


def test_webdataset(mined_dataset, ours):
    import webdataset

    pattern = str(mined_dataset / "shards" / "{00000..00002}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == list(ours)
    for sample in samples:
        record = ours[sample["__key__"]]
        assert sample["jpg"].shape == (record.height, record.width, 3)
        _check_annotation(record, sample["json"])


def test_datasets_webdataset(mined_dataset, ours, offline):
    import datasets

    files = str(mined_dataset / "shards" / "*.tar")
    loaded = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=offline)
    assert [row["__key__"] for row in loaded] == list(ours)
    for row in loaded:
        assert row["jpg"].size == (ours[row["__key__"]].width, ours[row["__key__"]].height)
        _check_annotation(ours[row["__key__"]], row["json"])


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_parquet(mined_dataset, ours, offline, streaming):
    import datasets

    files = str(mined_dataset / "shards" / "*.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=streaming, cache_dir=offline
    )
    rows = list(loaded)
    assert [row["key"] for row in rows] == list(ours)
    assert all(np.array_equal(np.float32(row["boxes"]), ours[row["key"]].boxes) for row in rows)


def test_duckdb(mined_dataset, ours):
    import duckdb

    shards = mined_dataset / "shards" / "*.parquet"
    query = f"select key, len(boxes), boxes[1], list_min(rank) from '{shards}' order by key"
    rows = duckdb.sql(query).fetchall()
    assert [row[0] for row in rows] == sorted(ours)
    for key, count, first, best in rows:
        assert (count, best) == (len(ours[key].boxes), ours[key].rank[0])
        assert np.array_equal(np.float32(first), ours[key].boxes[0])


def test_pandas(mined_dataset, ours):
    import pandas

    frame = pandas.read_parquet(mined_dataset / "shards" / "00000.parquet")
    for row in frame.itertuples():
        assert np.array_equal(np.stack(row.boxes), ours[row.key].boxes)


def test_pyarrow_dataset_and_the_offsets(mined_dataset, ours):
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(mined_dataset / "shards", exclude_invalid_files=True).to_table()
    assert table.column("key").to_pylist() == list(ours)
    row = table.slice(0, 1).to_pylist()[0]
    with (mined_dataset / "shards" / "00000.tar").open("rb") as tar:
        tar.seek(row["tar_offset"])
        image = Image.open(io.BytesIO(tar.read(row["tar_size"])))
    assert image.size == (row["width"], row["height"])
