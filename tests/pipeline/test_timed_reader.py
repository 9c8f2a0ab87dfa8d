"""Sources that hang: a mount without its server, a web server that sends a byte now and then."""

import socketserver
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.image_records import Stopwatch
from pipeline.limits import Limits
from pipeline.plan import ShardTask
from pipeline.shard_task import Work, mined_images
from pipeline.sources import FolderSource, SourceUnavailableError
from pipeline.sources.listed import ListSource
from pipeline.timed_reader import timed_reads
from proposals.dataset.manifest import Rejection
from proposals.images import ImageRejected
from proposals.recipe import Recipe

_LIMITS = Limits(read_seconds=2.0)


@dataclass(frozen=True)
class _Hanging(FolderSource):
    """A source that never gives one of its images."""

    at: str = ""

    def read(self, uri):
        while uri == self.at:
            time.sleep(3600)
        return super().read(uri)


def _outcomes(source, *uris):
    task = ShardTask("00000", tuple(uri.rsplit("/", 1)[-1] for uri in uris), uris)
    return list(
        mined_images(task, Work(source, Path(), Recipe(max_side=64), "", limits=_LIMITS), Stopwatch())
    )


def test_a_read_that_hangs_is_given_up_and_the_worker_goes_on(photos):
    with pytest.raises(SourceUnavailableError, match=r"more/rocket\.jpg was not read within 2 s"):
        _outcomes(_Hanging(photos, at="more/rocket.jpg"), "cat.jpg", "more/rocket.jpg")
    (found,) = _outcomes(FolderSource(photos), "cat.jpg")
    assert len(found.proposals.boxes)


def test_of_silent_sources_only_a_web_server_is_one_images_own_fault():
    answer = threading.Event()

    def hangs(uri):
        answer.wait()
        return b""

    try:
        for uri, error in (
            ("s3://bucket/a.jpg", SourceUnavailableError),
            ("https://host/a.jpg", ImageRejected),
        ):
            with timed_reads(hangs, 0.05) as read, pytest.raises(error):
                read(uri)
    finally:
        answer.set()


class _Trickle(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(65536)
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not self.server.closing.wait(0.2):
            self.request.sendall(b"x")


@pytest.fixture
def trickle():
    """The URL of an image on a web server that sends five bytes a second."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Trickle) as server:
        server.daemon_threads, server.closing = True, threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/slow.jpg"
        server.closing.set()
        server.shutdown()


def test_a_web_server_that_trickles_costs_its_own_image(photos, trickle):
    refused, found = _outcomes(ListSource(photos / "list.txt", str(photos)), trickle, "cat.jpg")
    assert isinstance(refused, Rejection)
    assert (refused.uri, refused.stage, refused.reason) == (trickle, "read", "unreachable")
    assert len(found.proposals.boxes)


def test_what_a_read_raises_and_returns_is_its_own_and_its_thread_ends():
    def read(uri):
        if uri == "bad":
            raise FileNotFoundError(uri)
        return uri.encode()

    before = set(threading.enumerate())
    with timed_reads(read, 60) as timed:
        assert timed("one") == b"one"
        with pytest.raises(FileNotFoundError, match="bad"):
            timed("bad")
        assert timed("two") == b"two"
        (thread,) = set(threading.enumerate()) - before
    thread.join(60)
    assert not thread.is_alive()


def test_a_thread_that_was_given_up_ends_when_its_read_returns():
    answer, before = threading.Event(), set(threading.enumerate())
    with timed_reads(lambda uri: answer.wait() and b"", 0.05) as timed:
        with pytest.raises(SourceUnavailableError):
            timed("slow.jpg")
        (thread,) = set(threading.enumerate()) - before
    answer.set()
    thread.join(60)
    assert not thread.is_alive()
