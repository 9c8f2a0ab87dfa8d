"""Folders of images made to harm: what cannot be read is listed and refused, and the rest is mined."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.plan import make_plan
from pipeline.sources import FolderSource
from proposals.convert.image_files import ImageFiles
from proposals.images import ImageRejected

_LOOKED = {
    "circle.jpg": "bad_name",
    "nowhere.jpg": "missing",
    "folder.jpg": "is_a_directory",
    "pipe.jpg": "not_a_file",
    "random.jpg": "not_a_file",
    "socket.jpg": "not_a_file",
    "line\nbreak.jpg": "3 bytes",
    "\u202egpj.exe.jpg": "3 bytes",
    "n\u0308\ud55c\U0001f600.jpg": "3 bytes",
    "\\xff\\xfe.jpg": "3 bytes",
    "x" * 251 + ".jpg": "3 bytes",
    "-rf.jpg": "3 bytes",
    "$(reboot);.jpg": "3 bytes",
    ".jpg.png": "3 bytes",
    "page.html.jpg": "3 bytes",
}


@pytest.fixture
def folder(tmp_path):
    import socket

    root = tmp_path / "images"
    root.mkdir()
    for name, outcome in _LOOKED.items():
        if outcome == "3 bytes" and "\\x" not in name:
            (root / name).write_bytes(b"abc")
    (root / "circle.jpg").symlink_to("circle.jpg")
    (root / "nowhere.jpg").symlink_to("/nowhere")
    (root / "random.jpg").symlink_to("/dev/urandom")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket.jpg"))
    with open(os.fsencode(root) + b"/\xff\xfe.jpg", "wb") as stream:  # noqa: PTH123 - a name that is no text
        stream.write(b"abc")
    (root / "round").symlink_to(root)
    return root


def _outcome(source, uri):
    try:
        return f"{len(source.read(uri))} bytes"
    except ImageRejected as error:
        return error.reason


def test_every_entry_is_listed_once_and_read_or_refused(folder):
    source = FolderSource(folder)
    entries = list(source.entries())
    assert {entry.uri: _outcome(source, entry.uri) for entry in entries} == _LOOKED
    assert len(entries) == len(_LOOKED)
    assert make_plan(entries, 4).images == len(_LOOKED)


@pytest.fixture
def deep_folder(tmp_path):
    """1,200 folders in each other, a file in the last. Removed here: pytest's own clean-up recurses into them."""
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1200):
            os.mkdir("d")  # noqa: PTH102 - the whole path is too long for one call
            os.chdir("d")
        with open("deep.jpg", "wb") as stream:  # noqa: PTH123
            stream.write(b"abc")
    finally:
        os.chdir(here)
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_folders_may_lie_a_thousand_deep(deep_folder):
    source = FolderSource(deep_folder)
    (entry,) = source.entries()
    assert entry.uri == "d/" * 1200 + "deep.jpg"
    assert source.read(entry.uri) == b"abc"
    assert ImageFiles(deep_folder).place(["deep.jpg"]) == [(entry.uri, entry.uri)]
