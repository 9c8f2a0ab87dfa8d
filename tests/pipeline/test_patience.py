"""A store that answers now and then, a disk that does not; a log that nobody can write to."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import patience
from pipeline.patience import patiently
from pipeline.progress import LiveProgress
from pipeline.shard_task import Count
from proposals.dataset import layout
from proposals.dataset.assemble import read_identity
from proposals.errors import AlignDetError, DeniedError, UnansweredError
from proposals.paths import as_path

_BUSY = OSError(errno.EBUSY, "SlowDown: please reduce your request rate")


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    return slept


class _Store:
    """Raises ``errors``, one after the other, then gives."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return "given"


def test_a_busy_store_is_asked_again_with_growing_pauses(pauses):
    said = []
    errors = _BUSY, UnansweredError("s3://b cannot be reached"), OSError("EndpointConnectionError")
    assert patiently(as_path("memory://patience"), _Store(*errors), said.append) == "given"
    assert pauses == [1.0, 2.0, 4.0]
    assert all("does not answer" in sentence and "trying again" in sentence for sentence in said)


def test_a_store_that_never_answers_is_a_users_error_in_the_end(pauses):
    with pytest.raises(AlignDetError, match="run the same command again") as caught:
        patiently(as_path("memory://patience"), _Store(*[_BUSY] * 99), lambda _: None)
    assert "SlowDown" in str(caught.value)
    assert (len(pauses), sum(pauses)) == (9, 243.0)


@pytest.mark.parametrize(
    "error",
    [
        DeniedError("not for us"),
        AlignDetError("damaged"),
        PermissionError("AccessDenied"),
        FileNotFoundError("gone"),
    ],
)
def test_what_will_not_pass_is_not_waited_for(pauses, error):
    with pytest.raises(type(error)):
        patiently(as_path("memory://patience"), _Store(error), lambda _: None)
    assert not pauses


def test_a_local_disk_is_not_waited_for(pauses, tmp_path):
    with pytest.raises(OSError, match="SlowDown"):
        patiently(tmp_path, _Store(_BUSY), lambda _: None)
    assert not pauses


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_plan_that_cannot_be_read_now_is_not_damaged(mined_dataset, monkeypatch, number):
    from proposals.dataset import bounds

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(bounds, "open_any", refused)
    with pytest.raises(AlignDetError, match="cannot be read") as caught:
        read_identity(mined_dataset / layout.PLAN)
    assert os.strerror(number) in str(caught.value)
    assert "Choose a new folder" not in str(caught.value)


def test_a_log_on_a_full_disk_ends_no_job():
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - closing it fails as well
    with LiveProgress(Console(file=full), False) as progress:
        progress.start(3, Count(1, 10))
        progress.say("shard 00001: throttled, trying again")
        progress.update(Count(1, 10))
    with pytest.raises(OSError, match="No space left"):
        full.close()


_SAYS = """
import sys
from rich.console import Console
from pipeline.progress import LiveProgress
sys.stdin.readline()
with LiveProgress(Console(), False) as progress:
    progress.say("stopping: 2 shards in flight finish first")
    progress.say("and another sentence")
print("still here", file=sys.stderr)
"""


def test_a_pipe_whose_reader_is_gone_ends_no_job():
    process = subprocess.Popen(
        [sys.executable, "-c", _SAYS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert "still here" in process.stderr.read()
    process.wait()
