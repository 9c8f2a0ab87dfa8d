"""A file system that fails, or a process that dies, at any step and byte: a resume gives the undisturbed dataset."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


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
