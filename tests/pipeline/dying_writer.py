"""Writes one shard and closes the dataset, again and again, failing or dying at every step. For test_write_faults.

    python dying_writer.py FOLDER_OF_IMAGES SCRATCH STRIDE

Steps are calls into the system: opening, flushing, renaming, removing. At each one the run dies, or the call fails; or,
from that step on, no file may grow beyond so many bytes (RLIMIT_FSIZE), which kills or fails the write that passes it.
After each, an undisturbed run must give the undisturbed dataset. Every run is a fork of this process, which has one
thread and has searched the images before.
"""

import hashlib
import io
import itertools
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.begin import begin
from pipeline.commit import commit
from pipeline.image_process import shared_process
from pipeline.image_records import Kernel, Stopwatch
from pipeline.limits import Limits
from pipeline.plan import make_plan
from pipeline.shard_task import Work, mined_images, write_shard
from pipeline.sources import FolderSource, describe
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import library_versions
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe

_RECIPE = Recipe(max_side=100)
_CALLS = ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (io, "open"), (pq, "write_table"))
_SIZES = (0, 1, 700, 3000, 12_000)


class Job:
    """One shard of images that are searched already."""

    def __init__(self, images):
        self._source = FolderSource(images)
        self._entries = list(self._source.entries())
        self._identity = JobIdentity(
            recipe=_RECIPE,
            source=describe("folder", self._entries),
            images_per_shard=100,
            versions=library_versions(),
        )
        plan = make_plan(self._entries, 100)
        workspace = begin(images.parent / "listed", plan, self._identity)
        self._work = Work(self._source, Path(), _RECIPE, self._identity.fingerprint())
        (task,) = workspace.pending
        self._outcomes = list(mined_images(task, self._work, Stopwatch()))
        shared_process(Kernel(_RECIPE), Limits()).close()

    def run(self, out):
        """What `aligndet mine` does around the search."""
        workspace = begin(out, make_plan(self._entries, 100), self._identity)
        if workspace.finished is not None:
            return
        work = Work(self._source, out, _RECIPE, self._identity.fingerprint())
        early = len(self._outcomes) - 1
        fresh = {
            task.name: write_shard(task.name, work, self._outcomes, Stopwatch(), flush_after=early)
            for task in workspace.pending
        }
        commit(workspace, {**workspace.done, **fresh})


def _count_calls(strike):
    """Call ``strike(number)`` before each of `_CALLS`, which counts them."""
    numbers = itertools.count()

    def wrap(call):
        def wrapped(*arguments, **options):
            strike(next(numbers))
            return call(*arguments, **options)

        return wrapped

    for module, name in _CALLS:
        setattr(module, name, wrap(getattr(module, name)))


def _die(step):
    def strike(number):
        if number == step:
            os._exit(9)

    return strike


def _fail(step):
    def strike(number):
        if number == step:
            raise OSError(5, "injected")

    return strike


def _limit(step, size, fatal):
    def strike(number):
        if number == step:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return strike


def _forked(work):
    """The exit status of ``work`` in a fork; 0: it returned, 1: it raised what a user sees or an OSError."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except (AlignDetError, OSError):
            os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _content(out):
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and not path.match("shards/*.json")
    }


def _disturbed(job, out, strike):
    _count_calls(strike)
    job.run(out)


def _resumed(job, out, expected):
    job.run(out)
    assert _content(out) == expected, sorted(set(_content(out).items()) ^ set(expected.items()))
    report = verify_dataset(out, deep=True)
    assert not report.problems, report.problems
    assert not report.unfinished, report.unfinished


def main():
    """Sweep, then print one line; exits 1 at the first point after which a resume does not give the dataset."""
    images, scratch, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    job = Job(images)
    whole = scratch / "whole"
    job.run(whole)
    expected = _content(whole)
    steps = _steps(job, scratch)
    strikes = [kind(step) for step in range(steps) for kind in (_die, _fail)]
    strikes += [
        _limit(step, size, fatal) for step in range(steps) for size in _SIZES for fatal in (True, False)
    ]
    ends = {}
    for number in range(0, len(strikes), stride):
        out = scratch / f"run{number}"
        end = _forked(lambda out=out, number=number: _disturbed(job, out, strikes[number]))
        ends[end] = ends.get(end, 0) + 1
        if end == 2 or _forked(lambda out=out: _resumed(job, out, expected)):
            sys.exit(f"point {number} of {len(strikes)} ended with {end} and was not healed")
        shutil.rmtree(out)
    print(f"{steps} steps, {sum(ends.values())} points, ends {dict(sorted(ends.items()))}")


def _steps(job, scratch):
    reader, writer = os.pipe()
    assert _forked(lambda: _disturbed(job, scratch / "counted", lambda _: os.write(writer, b"."))) == 0
    return len(os.read(reader, 65536))


if __name__ == "__main__":
    main()
