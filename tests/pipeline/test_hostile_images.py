"""Twelve hostile files, the whole command: each is a row or a reject with its reason, exactly once."""

import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.sources import FolderSource
from proposals.dataset import open_dataset
from proposals.images import ImageRejected
from tests.attacks.images import chunk

_ROOT = os.geteuid() == 0
_REJECTS = {
    "directory.jpg": ("read", "is_a_directory"),
    "empty.jpg": ("decode", "empty_file"),
    "huge.png": ("decode", "too_many_pixels"),
    "text.jpg": ("decode", "not_an_image"),
    "truncated.jpg": ("decode", "truncated"),
}


def _huge_png():
    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 60001))


@pytest.fixture(scope="module")
def hostile(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    photo = Image.open(photos / "cat.jpg")
    jpeg = (photos / "cat.jpg").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.jpg").write_text("I am not a photograph.\n" * 20)
    photo.crop((0, 0, 1, 1)).save(folder / "one_pixel.png")
    (folder / "huge.png").write_bytes(_huge_png())
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    rgba = photo.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(photo.size))
    rgba.save(folder / "rgba.png")
    photo.save(folder / "animated.gif", save_all=True, append_images=[photo.rotate(180)] * 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "rotated.jpg", exif=exif)
    (folder / "directory.jpg").mkdir()
    (folder / "locked.jpg").write_bytes(jpeg)
    (folder / "locked.jpg").chmod(0)
    return folder


def test_each_is_a_row_or_a_reject_exactly_once(hostile, tmp_path, start):
    out = tmp_path / "out"
    status, output = start(hostile, out, "--workers", "2", "--images-per-shard", "4").wait()
    assert status == 0, output
    dataset = open_dataset(out)
    rejected = {row["uri"]: row for row in pq.read_table(out / "rejected.parquet").to_pylist()}
    rows = {record.uri: record for record in dataset}
    expected = _REJECTS if _ROOT else _REJECTS | {"locked.jpg": ("read", "permission_denied")}
    assert {uri: (row["stage"], row["reason"]) for uri, row in rejected.items()} == expected
    assert len(rows) + len(rejected) == len(dataset) + len(rejected) == 12
    assert set(rows) | set(rejected) == {path.name for path in hostile.iterdir()}
    assert all(len(row["traceback_hash"]) == 16 and row["detail"] for row in rejected.values())
    assert dataset.manifest.totals.rejected == len(rejected)
    assert "truncated" in output
    assert rows["one_pixel.png"].boxes.tolist() == [[0, 0, 1, 1]]
    assert rows["one_pixel.png"].status == "fallback_no_size"
    photo = Image.open(hostile / "cmyk.jpg")
    assert (rows["rotated.jpg"].width, rows["rotated.jpg"].height) == photo.size[::-1]
    assert rows["rotated.jpg"].orientation == 6


def test_a_folder_of_rejects_only_is_still_a_dataset(hostile, tmp_path, mine_folder):
    source = tmp_path / "in"
    source.mkdir()
    (source / "text.jpg").write_bytes((hostile / "text.jpg").read_bytes())
    out = mine_folder(source, tmp_path / "out")
    assert len(open_dataset(out)) == 0
    assert open_dataset(out).table(["key"]).num_rows == 0
    assert pq.read_table(out / "rejected.parquet").num_rows == 1
    assert not list(out.glob("shards/*.tar"))


def test_a_file_that_may_not_be_read_is_a_reject():
    # Root may read anything, so take its rights away for the one read that matters.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "locked.jpg"
        path.write_bytes(io.BytesIO(b"x").getvalue())
        path.chmod(0)
        Path(folder).chmod(0o755)
        if _ROOT:
            os.seteuid(65534)
        try:
            with pytest.raises(ImageRejected) as caught:
                FolderSource(Path(folder)).read("locked.jpg")
        finally:
            if _ROOT:
                os.seteuid(0)
    assert (caught.value.stage, caught.value.reason) == ("read", "permission_denied")


def test_a_pipe_with_the_name_of_an_image_is_a_reject_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (entry,) = FolderSource(tmp_path).entries()
    with pytest.raises(ImageRejected) as caught:
        FolderSource(tmp_path).read(entry.uri)
    assert (caught.value.stage, caught.value.reason) == ("read", "not_a_file")
