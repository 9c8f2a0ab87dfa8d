"""The environment in which a private Ray starts."""

import os

from pipeline.cluster import _environment_of


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
