"""What a stranger's uri makes of a member's name in our tars: never anything that a reader would run or confuse."""

import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from proposals.dataset import layout
from proposals.dataset.checks.members import tar_faults
from proposals.dataset.tables import read_shard
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.filter_spec import Filtered
from proposals.images import decode_bgr

_WIDTH, _HEIGHT = 2, 0x4300
_URIS = [
    *(f"a.{suffix}" for suffix in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "json", "cls", "Json", "tar")),
    "https://h/" + "a_long_name" * 9 + ".jpg?w=640&h=480&crop=faces&fit=crop&q=80&signature=" + "0f" * 32,
    "photo.jp\u00e9",
    "a." + "x" * 200,
]  # fmt: skip


def _image_and_pickle():
    """A GIF of 2 x 17152 px that is a sound pickle too, one that raises SystemExit when it is loaded."""
    code = b"cbuiltins\nexit\n(S'the pickle ran'\ntR."
    stream = io.BytesIO()
    Image.new("P", (_WIDTH, _HEIGHT)).save(stream, "GIF")
    plain = stream.getvalue()
    flags, palette = plain[10], 3 * 2 ** ((plain[10] & 7) + 1)
    frame = plain[13 + palette :]
    frame = frame[frame.index(b"\x2c") :]
    # Two opcodes of the header ("G" a float, "C" a string of 0x50 bytes) swallow what is before the comment's end.
    head = b"GIF89a" + struct.pack("<HH", _WIDTH, _HEIGHT) + bytes([0x50, 0, 0])
    comment = b" " * 75 + code
    own_palette = frame[:9] + bytes([0x80 | (flags & 7)]) + plain[13 : 13 + palette] + frame[10:]
    return head + b"\x21\xfe" + bytes([len(comment)]) + comment + b"\0" + own_palette


@pytest.fixture
def shard(tmp_path):
    """(root, entry) of a shard of one image for each uri."""
    (tmp_path / "shards").mkdir()
    data, boxes = _image_and_pickle(), np.array([[0, 0, 2, 9]], np.float32)
    found = Filtered(boxes, np.zeros(1, np.float32), "ok")
    size = _WIDTH, _HEIGHT, 1
    with ShardWriter(tmp_path, "00000") as writer:
        for uri in _URIS:
            digest = hashlib.sha256(data).hexdigest()
            writer.add(MinedImage(layout.key_of(uri), uri, data, digest, *size, found))
        return tmp_path, writer.commit()


def test_the_image_is_one_and_a_pickle_that_runs_code():
    import pickle

    assert decode_bgr(_image_and_pickle()).format == "GIF"
    with pytest.raises(SystemExit, match="the pickle ran"):
        pickle.loads(_image_and_pickle())


def test_no_uri_makes_a_reader_of_our_tars_run_it(shard):
    root, entry = shard
    path = layout.tar_path(root, "00000")
    assert not list(tar_faults(path, read_shard(root, entry)))
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert len(set(names)) == 2 * len(_URIS)
    assert {name.partition(".")[2] for name in names} == {"bin", "jpg", "json"}
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["json"]["uri"] for sample in samples] == _URIS
