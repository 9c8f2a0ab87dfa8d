"""A part of a file on a web server: servers that obey, send all of it, or never end; and a process that forks."""

import contextlib
import http.server
import itertools
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from proposals.dataset import open_dataset
from proposals.dataset.files import read_range
from proposals.errors import AlignDetError
from proposals.fetch import SourceUnavailableError, fetch
from proposals.images import ImageRejected
from proposals.paths import as_path
from tests.web_server import serving

_BLOCK = 2**18


class _Whole(http.server.SimpleHTTPRequestHandler):
    """The whole file, whatever part was asked for."""

    def log_message(self, *args):
        pass


class _Part(_Whole):
    """The part that was asked for; of /endless no end."""

    def do_GET(self):
        if self.path == "/endless":
            self._blocks_without_end()
            return
        if "Range" not in self.headers:
            super().do_GET()
            return
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        data = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _blocks_without_end(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for number in itertools.count():
                self.wfile.write(number.to_bytes(4, "big") * (_BLOCK // 4))


class _Busy(_Whole):
    """Who comes again within ``pause`` seconds is sent away again; the header says ``retry_after``."""

    pause, retry_after, left_alone_since = 1.0, "1", 0.0

    def do_GET(self):
        now, busy = time.monotonic(), type(self)
        if now - busy.left_alone_since >= busy.pause and busy.left_alone_since:
            super().do_GET()
            return
        busy.left_alone_since = now
        self.send_response(429)
        self.send_header("Retry-After", busy.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("handler", [_Whole, _Part])
def test_a_part_is_that_part_whatever_the_server_sends(tmp_path, handler):
    data = np.random.default_rng(0).bytes(3 * 2**20)
    (tmp_path / "x.tar").write_bytes(data)
    with serving(tmp_path, handler) as url:
        for start, size in ((0, 5), (7, 2**20 + 9), (2**20 + 3, 2**20), (len(data) - 4, 4)):
            assert fetch(f"{url}/x.tar", start, size) == data[start : start + size]
            assert read_range(as_path(f"{url}/x.tar"), start, size) == data[start : start + size]
        with pytest.raises(ImageRejected, match="ends inside of it"):
            fetch(f"{url}/x.tar", len(data) - 4, 5)


def test_a_server_without_end_is_left_where_the_part_ends(tmp_path):
    with serving(tmp_path, _Part) as url:
        assert fetch(f"{url}/endless", 9 * _BLOCK - 2, 4) == bytes((0, 8, 0, 0))


@pytest.mark.parametrize("asked", ["3", "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "9" * 30, ""])
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(tmp_path, monkeypatch, asked):
    """``soon`` and nothing are no answer, and nobody is waited for for ever."""
    (tmp_path / "x.jpg").write_bytes(b"bytes")
    slept = []
    monkeypatch.setattr("proposals.fetch.time.sleep", slept.append)
    with (
        serving(tmp_path, _Busy, retry_after=asked, pause=3600.0) as url,
        pytest.raises(SourceUnavailableError, match="429"),
    ):
        fetch(f"{url}/x.jpg")
    assert slept == {"3": [3.0, 3.0], "soon": [0.5, 2.0], "": [0.5, 2.0]}.get(asked, [20.0, 20.0])


def test_a_server_that_was_left_alone_answers(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"bytes")
    with serving(tmp_path, _Busy) as url:
        assert fetch(f"{url}/x.jpg") == b"bytes"


def test_a_web_server_that_has_no_dataset_is_told_from_one_that_does_not_answer(tmp_path):
    with (
        serving(tmp_path, _Whole) as url,
        pytest.raises(AlignDetError, match=r"Is the address that of its folder\?"),
    ):
        open_dataset(f"{url}/nothing")
    with pytest.raises(AlignDetError, match="cannot be reached"):
        open_dataset(f"{url}/nothing")


def test_a_dataset_is_read_on_both_sides_of_a_fork(mined_dataset):
    expected = open_dataset(mined_dataset)
    with serving(mined_dataset, _Part) as url:
        dataset = open_dataset(url)
        assert dataset.image_bytes(0) == expected.image_bytes(0)
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=lambda: answers.put(dataset.image_bytes(7)))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert answers.get() == expected.image_bytes(7)
        assert dataset.image_bytes(3) == expected.image_bytes(3)
