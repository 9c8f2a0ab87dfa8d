"""The environment in which a private Ray starts."""

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import _environment_of, is_private
from proposals.dataset import open_dataset

STARTED = """
import json, os
from pipeline.cluster import connected
from tests.pipeline.listeners import listening_addresses

with connected(None, 1) as ray:
    ray.get(ray.remote(lambda: None).remote())
    print(json.dumps(sorted(listening_addresses(os.getpid()))))
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads listening sockets from Linux's /proc")
def test_a_private_ray_listens_on_loopback_alone():
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", STARTED], cwd=root, capture_output=True, text=True, check=True
    )
    addresses = json.loads(run.stdout.splitlines()[-1])
    assert addresses
    assert [address for address in addresses if not ipaddress.ip_address(address).is_loopback] == []


def test_no_file_among_the_photographs_is_run(photos, tmp_path):
    """As after `cd photos; aligndet mine .`: modules of their names are not ours, in no process of the job."""
    folder = shutil.copytree(photos, tmp_path / "in")
    for name in ("cv2.py", "numpy.py", "pipeline.py", "proposals.py", "PIL.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath('{tmp_path}/ran').touch()\n")
    program = "from proposals.cli import main; main()"
    command = [sys.executable, "-P", "-c", program, "mine", ".", str(tmp_path / "out"), "--max-side", "64"]
    run = subprocess.run([*command, "--workers", "1"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not (tmp_path / "ran").exists()
    assert len(open_dataset(tmp_path / "out")) == 8


def test_settings_yield_to_the_users_and_are_gone_afterwards(monkeypatch):
    monkeypatch.setenv("ALIGNDET_TEST_OWN", "mine")
    monkeypatch.delenv("ALIGNDET_TEST_OTHER", raising=False)
    with _environment_of({"ALIGNDET_TEST_OWN": "theirs", "ALIGNDET_TEST_OTHER": "theirs"}):
        assert (os.environ["ALIGNDET_TEST_OWN"], os.environ["ALIGNDET_TEST_OTHER"]) == ("mine", "theirs")
    assert os.environ["ALIGNDET_TEST_OWN"] == "mine"
    assert "ALIGNDET_TEST_OTHER" not in os.environ


def test_a_private_ray_that_cannot_start_is_one_sentence(photos, tmp_path, start, monkeypatch):
    folder = tmp_path / ("x" * 120)  # too long for the names of Ray's sockets
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    status, output = start(photos, tmp_path / "out").wait()
    assert status == 1
    assert "Ray did not start on this machine" in output
    assert "Traceback" not in output


def test_an_empty_address_is_none(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert is_private(None)
    assert is_private("")
    monkeypatch.setenv("RAY_ADDRESS", "here:6379")
    assert not is_private(None)
