"""A file system that fails, or a process that dies, at any step and byte: a resume gives the undisturbed dataset."""

import hashlib
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from proposals.dataset import layout
from proposals.dataset.files import write_atomically
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.filter_spec import Filtered


def _sweep(photos, tmp_path, stride):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(photos.glob("*.jpg"))[:3]:
        (images / path.name).write_bytes(path.read_bytes())
    (images / "torn.jpg").write_bytes(path.read_bytes()[:500])
    (tmp_path / "scratch").mkdir()
    program = Path(__file__).with_name("dying_writer.py")
    command = [sys.executable, str(program), str(images), str(tmp_path / "scratch"), str(stride)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    # It died by our hand, by the file size limit, raised, and came through where nothing was left to write.
    ends = {int(end) for end in re.findall(r"(-?\d+): \d+", run.stdout)}
    assert {9, -25, 1, 0} <= ends


def test_some_steps_and_bytes_of_writing_a_shard(photos, tmp_path):
    _sweep(photos, tmp_path, stride=17)


@pytest.mark.slow
def test_every_step_and_many_bytes_of_writing_a_shard(photos, tmp_path):
    _sweep(photos, tmp_path, stride=1)


def _write(root, image):
    with ShardWriter(root, "00000") as writer:
        writer.add(image)
        writer.flush()


@pytest.fixture
def room_for_2000_bytes():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [3000, 60_000])
def test_a_full_disk_is_named_and_keeps_nothing_of_the_shard_that_it_had_no_room_for(
    tmp_path, size, room_for_2000_bytes
):
    (tmp_path / layout.SHARDS).mkdir()
    data, found = bytes(size), Filtered(np.array([[0, 0, 2, 9]], np.float32), np.zeros(1, np.float32), "ok")
    image = MinedImage("a-0", "a.jpg", data, hashlib.sha256(data).hexdigest(), 9, 9, 1, found)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / layout.SHARDS))) as caught:
        _write(tmp_path, image)
    # As long as somebody holds the exception, nothing is collected.
    assert caught.value.errno
    assert not list((tmp_path / layout.SHARDS).iterdir())


def test_a_full_disk_is_named_and_keeps_nothing_of_a_record(tmp_path, room_for_2000_bytes):
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        write_atomically(tmp_path / "00000.json", bytes(3000))
    assert not list(tmp_path.iterdir())
