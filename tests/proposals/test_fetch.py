"""Bytes by name: every failure has its own reason, and what is left to a second try is nobody's fault."""

import errno
import os
from pathlib import Path

import pytest

from proposals import fetch as fetching
from proposals.fetch import SourceUnavailableError, as_spelled, fetch, with_raw_bytes
from proposals.images import ImageRejected
from tests.web_server import Endless, serving


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr(fetching.time, "sleep", slept.append)
    return slept


def _reason(location, *part):
    with pytest.raises(ImageRejected) as caught:
        fetch(str(location), *part)
    assert caught.value.stage == "read"
    return caught.value.reason


@pytest.mark.parametrize(
    ("reason", "answers"),
    [
        ("missing", (404, 410)),
        ("permission_denied", (401, 403, 407, 451)),
        ("refused", (400, 405, 406, 409, 414, 418, 431, 499)),
        (None, (408, 425, 429, 500, 502, 503, 504)),
    ],
)
@pytest.mark.parametrize("part", [(), (0, 3)])
def test_what_a_web_server_answers_is_the_reason_or_is_asked_for_again(
    tmp_path, pauses, reason, answers, part
):
    (tmp_path / "x.jpg").write_bytes(b"bytes")
    for answer in answers:
        pauses.clear()
        with serving(tmp_path, wrong={"x.jpg": answer}) as url:
            if reason is None:
                with pytest.raises(SourceUnavailableError, match=str(answer)):
                    fetch(f"{url}/x.jpg", *part)
            else:
                assert _reason(f"{url}/x.jpg", *part) == reason
        assert pauses == ([0.5, 2.0] if reason is None else [])


@pytest.mark.parametrize("times", [1, 2])
def test_a_third_answer_is_as_good_as_a_first(tmp_path, pauses, times):
    (tmp_path / "x.jpg").write_bytes(b"bytes")
    with serving(tmp_path, wrong={"x.jpg": 503}, times=times) as url:
        assert fetch(f"{url}/x.jpg") == b"bytes"
    assert pauses == [0.5, 2.0][:times]


def _local(folder):
    yield folder


def _served(folder):
    with serving(folder) as url:
        yield url


@pytest.mark.parametrize("place", [_local, _served])
def test_as_many_bytes_as_an_image_may_have_are_read_and_not_one_more(tmp_path, monkeypatch, place):
    monkeypatch.setattr(fetching, "MAX_IMAGE_BYTES", 1000)
    for size in (999, 1000, 1001, 5000):
        (tmp_path / str(size)).write_bytes(bytes(size))
    for where in place(tmp_path):
        assert [len(fetch(f"{where}/{size}")) for size in (999, 1000)] == [999, 1000]
        assert [_reason(f"{where}/{size}") for size in (1001, 5000)] == ["too_large"] * 2
        assert len(fetch(f"{where}/5000", 4000, 1000)) == 1000
        assert _reason(f"{where}/5000", 0, 1001) == "too_large"
        assert _reason(f"{where}/1001", 1, 1001) == "too_large"
        assert _reason(f"{where}/1001", 2, 1000) == "container_cut"
        assert fetch(f"{where}/5000", 17, 0) == b""


def test_a_server_that_sends_without_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_IMAGE_BYTES", 2**20)
    with serving(tmp_path, Endless) as url:
        assert _reason(f"{url}/x.jpg") == "too_large"


def test_what_is_wrong_with_a_file_here_is_its_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("nothing.jpg")
    (tmp_path / "file").write_bytes(b"")
    expected = {
        "pipe.jpg": "not_a_file",
        "folder.jpg": "is_a_directory",
        "circle.jpg": "bad_name",
        "n" * 300: "bad_name",
        "a\0b": "bad_name",
        r"\x90" + "\0": "bad_name",
        "nowhere.jpg": "missing",
        "none.jpg": "missing",
        "file/x.jpg": "missing",
    }
    assert {name: _reason(f"{tmp_path}/{name}") for name in expected} == expected


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_disk_that_fails_is_no_fault_of_an_image(tmp_path, monkeypatch, number):
    (tmp_path / "x.jpg").write_bytes(b"bytes")

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(SourceUnavailableError, match=os.strerror(number)):
        fetch(str(tmp_path / "x.jpg"))


def test_a_name_with_raw_bytes_is_found_by_its_uri_and_one_that_looks_like_it_by_its_own(tmp_path):
    raw = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / raw).write_bytes(b"raw")
    assert fetch(f"{tmp_path}/caf\\xe9.jpg") == b"raw"
    (tmp_path / r"caf\xe9.jpg").write_bytes(b"spelled")
    assert fetch(f"{tmp_path}/caf\\xe9.jpg") == b"spelled"
    assert as_spelled(f"{tmp_path}/{raw}") == f"{tmp_path}/{raw}"
    # A byte below 0x80 is UTF-8, so it is never spelled so.
    assert with_raw_bytes(r"\x41\x7f\xgg\x80\xff") == r"\x41\x7f\xgg" + os.fsdecode(b"\x80\xff")
