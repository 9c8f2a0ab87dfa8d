"""What is committed to a store that answers now and then; a log that nobody can write to."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import commit, patience
from pipeline.begin import begin
from pipeline.patience import patiently
from pipeline.plan import make_plan
from pipeline.progress import LiveProgress
from pipeline.shard_task import Count
from pipeline.sources import SourceEntry
from proposals.dataset import layout
from proposals.dataset.assemble import read_identity
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    CommitRecord,
    Rejection,
    ShardEntry,
    library_versions,
    read_manifest,
    write_model,
)
from proposals.errors import AlignDetError, DeniedError, UnansweredError
from proposals.paths import as_path
from proposals.recipe import Recipe

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


@pytest.fixture
def mined():
    """(workspace, records) of a job whose two shards are mined, each of one rejected image, at a URL."""
    out = as_path("memory://committed/out")
    plan = make_plan([SourceEntry(f"{number}.jpg", 10) for number in range(2)], 1)
    identity = JobIdentity(
        recipe=Recipe(), source=plan.source("folder"), images_per_shard=1, versions=library_versions()
    )
    opened = begin(out, plan, identity)
    records = {task.name: _record(task, identity) for task in opened.pending}
    for name, record in records.items():
        write_model(layout.record_path(out, name), record)
    yield opened, records
    out.fs.rm("/committed", recursive=True)


def _record(task, identity):
    refused = Rejection(
        key=task.keys[0],
        uri=task.uris[0],
        stage="decode",
        reason="corrupt",
        detail="",
        traceback_hash="0" * 16,
    )
    shard = ShardEntry(name=task.name, images=0, proposals=0, statuses={}, tar=None, parquet=None)
    job = identity.fingerprint()
    return CommitRecord(
        job=job, shard=shard, rejected=(refused,), timing={"total": 1.0}, versions=library_versions()
    )


@pytest.mark.parametrize("step", ["written_records", "remove_leftovers", "assemble", "_forget_overtaken"])
def test_a_hiccup_while_the_whole_is_committed_accuses_nobody(mined, pauses, monkeypatch, step):
    opened, records = mined
    real, errors = getattr(commit, step), [_BUSY, UnansweredError("s3://b cannot be reached")]

    def flaky(*arguments):
        if errors:
            raise errors.pop(0)
        return real(*arguments)

    monkeypatch.setattr(commit, step, flaky)
    said = []
    manifest = commit.commit(opened, records, said.append)
    assert (len(said), pauses) == (2, [1.0, 2.0])
    assert read_manifest(opened.out) == manifest


def test_a_record_that_does_not_answer_is_not_another_runs(mined, monkeypatch):
    from pipeline import proofs

    def unanswered(path):
        raise UnansweredError(f"{path} cannot be reached")

    monkeypatch.setattr(proofs, "read_record", unanswered)
    with pytest.raises(UnansweredError):
        proofs.written_records(mined[0].out, ["00000"])


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
