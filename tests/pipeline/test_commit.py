"""What is committed to a store that answers now and then: all of it, and no other run is accused."""

import errno
from collections.abc import Callable
from functools import wraps

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import patience
from pipeline.begin import begin
from pipeline.commit import commit
from pipeline.plan import make_plan
from pipeline.sources import SourceEntry
from proposals.dataset import layout
from proposals.dataset.manifest import (
    CommitRecord,
    Rejection,
    ShardEntry,
    library_versions,
    read_manifest,
    write_model,
)
from proposals.dataset.verify import verify_dataset
from proposals.errors import UnansweredError
from proposals.paths import as_path
from proposals.recipe import Recipe
from tests.pipeline.jobs_by_hand import identity_of

# What every other way of asking a memory:// store comes to.
_ASKED = (
    "info",
    "ls",
    "_open",
    "cat_file",
    "pipe_file",
    "cp_file",
    "rm_file",
    "_rm",
    "mv",
    "mkdir",
    "makedirs",
)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    return slept


@pytest.fixture
def fresh():
    """Another one each time."""
    store = as_path("memory://committed").fs

    def anew():
        if store.exists("/committed"):
            store.rm("/committed", recursive=True)
        return _mined()

    yield anew
    store.rm("/committed", recursive=True)


def _mined():
    """(workspace, records) of a job whose two shards are mined, each of one rejected image, at a URL."""
    out = as_path("memory://committed/out")
    plan = make_plan([SourceEntry(f"{number}.jpg", 10) for number in range(2)], 1)
    identity = identity_of(plan, Recipe(), 1)
    opened = begin(out, plan, identity)
    records = {task.name: _record(task, identity) for task in opened.pending}
    for name, record in records.items():
        write_model(layout.record_path(out, name), record)
    return opened, records


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


class _Hiccups:
    """Counts what a memory:// store is asked, and lets it fail the ``times`` times from number ``at`` on."""

    def __init__(self, monkeypatch, at=0, times=0):
        self.asked, self._failing, self._busy = 0, range(at, at + times), False
        for name in _ASKED:
            if hasattr(MemoryFileSystem, name):
                monkeypatch.setattr(MemoryFileSystem, name, self._flaky(getattr(MemoryFileSystem, name)))

    def _flaky(self, method: Callable) -> Callable:
        @wraps(method)
        def asked(*arguments, **options):
            if self._busy:  # one way of asking that is made of another
                return method(*arguments, **options)
            self.asked += 1
            if self.asked in self._failing:
                raise OSError(errno.EBUSY, "SlowDown: please reduce your request rate")
            self._busy = True
            try:
                return method(*arguments, **options)
            finally:
                self._busy = False

        return asked


def _number_of_questions(mined):
    with pytest.MonkeyPatch.context() as patched:
        hiccups = _Hiccups(patched)
        commit(*mined)
        return hiccups.asked


def test_a_hiccup_at_any_moment_of_the_commit_costs_and_accuses_nothing(fresh, pauses):
    questions = _number_of_questions(fresh())
    assert questions > 20
    waited = 0
    for at in range(1, questions + 1):
        opened, records = fresh()
        pauses.clear()
        with pytest.MonkeyPatch.context() as patched:
            _Hiccups(patched, at, times=2)
            manifest = commit(opened, records)
        assert read_manifest(opened.out) == manifest
        assert not verify_dataset(opened.out).problems
        waited += bool(pauses)
    # Of a few questions the answer is not needed: the beat that is taken away at the end.
    assert waited > questions / 2


def test_a_record_that_does_not_answer_is_not_another_runs(fresh, monkeypatch):
    from pipeline import proofs

    def unanswered(path):
        raise UnansweredError(f"{path} cannot be reached")

    monkeypatch.setattr(proofs, "read_record", unanswered)
    with pytest.raises(UnansweredError):
        proofs.written_records(fresh()[0].out, ["00000"])
