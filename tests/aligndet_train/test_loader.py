"""Loaders of whole runs: what the config says reaches the samples, and worker processes end when they should."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import time

import pytest

from aligndet_train import loader
from aligndet_train.config import PretrainConfig
from aligndet_train.loader import build_loader, leave_signals_to_the_parent, step_loader, workers_ended
from aligndet_train.stream import ProposalStream, StepSampler, StreamState
from aligndet_train.stream.cache import CachedDataset, CacheSpec
from aligndet_train.stream.dataset import readable
from proposals.dataset import open_dataset

CONFIG = PretrainConfig(seed=5, batch_size=3, shard_window=1, proposals_per_image=4)


def positions(batches):
    return [[(sample.epoch, sample.index) for sample in batch] for batch in batches]


@pytest.mark.parametrize("start", [None, StreamState(6, 1, 2)])
def test_a_runs_batches_are_those_of_its_config_and_of_where_it_goes_on(mined_dataset, start):
    dataset = open_dataset(mined_dataset)
    batches = list(build_loader(dataset, CONFIG, steps=6, workers=0, start=start))
    first = start or StreamState(CONFIG.seed, 0, 0)
    sampler = StepSampler(dataset.shard_sizes, start=first, batch_size=3, steps=6, window=1)
    assert positions(batches) == list(sampler)
    assert all(len(sample.boxes) == 4 and sample.clusters is None for batch in batches for sample in batch)


def test_what_is_damaged_is_skipped_where_the_run_says_so(copy):
    os.truncate(copy / "shards" / "00001.tar", 0)
    batches = build_loader(open_dataset(copy), CONFIG, steps=2, workers=0, damaged="skip")
    assert any(sample.skipped for batch in batches for sample in readable(batch))


def cached_loader(root, folder, steps):
    return step_loader(
        open_dataset(root),
        ProposalStream,
        StreamState(0, 0, 0),
        batch_size=1,
        steps=steps,
        window=1,
        workers=0,
        cache=CacheSpec(folder, 10**9),
    )


def test_a_run_with_a_cache_reads_from_it(copy, tmp_path):
    cache = CachedDataset(copy, CacheSpec(tmp_path / "cache", 10**9))
    for shard in range(len(cache.shard_sizes)):
        cache.fetch(shard)
    shutil.rmtree(copy / "shards")
    assert sum(len(batch) for batch in cached_loader(copy, tmp_path / "cache", 8)) == 8


def test_the_next_windows_shard_is_fetched_before_it_is_read(mined_dataset, tmp_path):
    list(cached_loader(mined_dataset, tmp_path / "cache", 1))
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").glob("*/shards/[0-9]*.tar"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_workers_end_with_the_block_also_by_an_error(mined_dataset):
    batches = build_loader(open_dataset(mined_dataset), CONFIG, steps=9, workers=2)
    before = set(multiprocessing.active_children())
    with contextlib.suppress(ZeroDivisionError), workers_ended(batches):
        next(iter(batches))
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        raise ZeroDivisionError
    assert not any(worker.is_alive() for worker in workers)


def work_on(ready) -> None:
    # Not what nohup ignores, nor the alarm that ends a test after its time.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    loader._SECONDS_TO_STOP = 1
    leave_signals_to_the_parent(0)
    ready.set()
    time.sleep(60)


def test_a_worker_outlives_what_its_group_is_sent_and_ends_a_while_after_it_was_asked_to():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=work_on, args=(ready,))
    worker.start()
    try:
        assert ready.wait(60)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(worker.pid, number)
        worker.join(0.3)
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(30)
        assert worker.exitcode == -signal.SIGALRM
    finally:
        worker.kill()
        worker.join()
