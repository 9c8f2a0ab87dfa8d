"""A reader written from docs/format.md alone, and what the page must not forget to mention."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import zarr
from PIL import Image, ImageOps

from proposals.dataset.consolidated import consolidate

_PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def _sealed(path):
    """The content of a JSON file whose digest fits, as the page defines it."""
    data = path.read_bytes()
    lines = data.split(b"\n")
    assert lines[-2:] == [b"}", b""]
    line = b"\n".join(lines[-3:])
    body = data[: len(data) - len(line)]
    content = json.loads(data)
    assert hashlib.sha256(body).hexdigest() == content["digest"]
    assert lines[-3] == b' "digest": "%s"' % content["digest"].encode()
    return content


def _key(uri):
    last = uri.rsplit("/", 1)[-1]
    stem = last.rsplit(".", 1)[0] if "." in last[1:] else last
    stem = re.sub("[^A-Za-z0-9_-]+", "_", stem)[:48].strip("_-") or "image"
    return stem + "-" + hashlib.sha256(uri.encode()).hexdigest()[:16]


def _fingerprint(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _intact(root, entry):
    data = (root / entry["path"]).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    return data


def _read(root):
    """Every row of the dataset, after all that the page promises about its shard was checked."""
    manifest = _sealed(root / "dataset.json")
    assert manifest["format"] == "aligndet-proposals"
    assert manifest["format_version"].split(".")[0] == "1"
    assert _fingerprint(manifest["recipe"]) == manifest["recipe_fingerprint"]
    _intact(root, manifest["plan"])
    plan = pq.read_table(root / "plan.parquet")
    listed = "".join(f"{row['uri']}\0{row['size']}\n" for row in plan.to_pylist())
    assert hashlib.sha256(listed.encode()).hexdigest() == manifest["source"]["fingerprint"]
    job = {name: manifest[name] for name in ("recipe", "source", "images_per_shard", "versions")}
    assert json.loads(plan.schema.metadata[b"aligndet.job"]) == job
    for number, shard in enumerate(manifest["shards"]):
        record = _sealed(root / "shards" / f"{number:05d}.json")
        assert (record["shard"], record["job"]) == (shard, _fingerprint(job))
        tar = _intact(root, shard["tar"])
        _intact(root, shard["parquet"])
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            members = archive.getmembers()
        rows = pq.read_table(root / shard["parquet"]["path"]).to_pylist()
        for row, image, annotation in zip(rows, members[::2], members[1::2], strict=True):
            assert row["key"] == _key(row["uri"])
            assert (image.name, annotation.name) == (row["key"] + ".jpg", row["key"] + ".json")
            text = tar[annotation.offset_data : annotation.offset_data + annotation.size]
            assert np.array_equal(np.float32(json.loads(text)["boxes"]), np.float32(row["boxes"]))
            yield row, tar[row["tar_offset"] : row["tar_offset"] + row["tar_size"]]


def test_a_reader_written_from_the_page(mined_dataset):
    rows = list(_read(mined_dataset))
    assert len(rows) == 8
    for row, data in rows:
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert image.size == (row["width"], row["height"])
        boxes = np.float32(row["boxes"])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes[:, 2:] <= image.size).all()
        assert len(row["rank"]) == len(boxes)


def test_the_page_names_every_field_and_column(mined_dataset):
    manifest = json.loads((mined_dataset / "dataset.json").read_text())
    record = json.loads((mined_dataset / "shards" / "00000.json").read_text())
    named = {*manifest, *record, *manifest["recipe"], *manifest["totals"], *manifest["shards"][0]}
    for file in ("plan.parquet", "rejected.parquet", "shards/00000.parquet"):
        named |= set(pq.read_schema(mined_dataset / file).names)
    assert [name for name in sorted(named) if f"`{name}`" not in _PAGE] == []


def test_the_page_tells_of_the_zarr_as_it_is(mined_dataset, tmp_path):
    copy = shutil.copytree(mined_dataset, tmp_path / "copy")
    consolidate(copy)
    group = zarr.open_group(copy / "proposals.zarr", mode="r")
    assert {name for name, _ in group.arrays()} == {"offsets", "boxes", "rank", "keys"}
    for name, array in group.arrays():
        assert f"`{name}`" in _PAGE
        assert (array.chunks[0], array.shards[0]) == (4096, 1_048_576)
    first = bytes(group["keys"][0]).rstrip(b"\0").decode()
    assert first == pq.read_table(copy / "shards" / "00000.parquet").column("key")[0].as_py()
