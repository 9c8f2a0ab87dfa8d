"""Shards through a bounded local cache: same samples, whole files, evictions, damage, several processes."""

import errno
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from aligndet_train.loader import step_loader
from aligndet_train.stream import ProposalStream, StepSampler, StreamState, cache
from aligndet_train.stream.cache import (
    CachedDataset,
    CacheSpec,
    DamagedShardError,
    FetchFailedError,
    Prefetcher,
    UnusableCacheError,
    cache_for,
)
from aligndet_train.stream.dataset import readable
from proposals.dataset import open_dataset
from proposals.dataset.consolidated import consolidate
from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import as_path
from proposals.recipe import Recipe
from tests.aligndet_train.forked import Command, finish
from tests.aligndet_train.power_cuts import files_named_before_flushed
from tests.aligndet_train.test_training import command, losses
from tests.damage import flip_a_bit, write_sealed
from tests.web_server import Static, serving

GENEROUS = 10**9


@pytest.fixture
def source(mined_dataset, tmp_path) -> Path:
    """A copy of the mined dataset that a test may damage; the cache must not look at it twice."""
    return Path(shutil.copytree(mined_dataset, tmp_path / "source"))


def cached(source: Path, tmp_path: Path, limit: int = GENEROUS) -> CachedDataset:
    return CachedDataset(source, CacheSpec(tmp_path / "cache", limit))


def shard_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/shards/[0-9]*"))


def assert_same_samples(dataset, expected):
    assert len(dataset) == len(expected)
    for index in range(len(expected)):
        assert dataset.image_bytes(index) == expected.image_bytes(index)
        assert np.array_equal(dataset[index].boxes, expected[index].boxes)
        assert dataset[index].key == expected[index].key


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def blank_out(record) -> None:
    """Overwrite an image with zeros."""
    with record.tar.open("r+b") as tar:
        tar.seek(record.offset)
        tar.write(b"\0" * record.size)


@pytest.mark.parametrize("remote", [False, True])
def test_samples_are_those_of_the_source(remote, mined_dataset, tmp_path):
    source = mined_dataset
    if remote:
        upath = pytest.importorskip("upath")
        source = upath.UPath(f"memory://{tmp_path.name}")
        for file in mined_dataset.rglob("*"):
            if file.is_file():
                (source / file.relative_to(mined_dataset).as_posix()).write_bytes(file.read_bytes())
    assert_same_samples(cached(source, tmp_path), open_dataset(mined_dataset))


def test_what_was_fetched_is_read_without_the_source(source, mined_dataset, tmp_path):
    dataset = cached(source, tmp_path)
    for shard in range(len(dataset.shard_sizes)):
        dataset.fetch(shard)
    shutil.rmtree(source / "shards")
    assert_same_samples(dataset, open_dataset(mined_dataset))
    assert_same_samples(cached(source, tmp_path), open_dataset(mined_dataset))


def test_the_folder_stays_below_its_limit_and_the_oldest_goes(source, mined_dataset, tmp_path):
    shards = open_dataset(source).manifest.shards
    sizes = [sum(entry.bytes for entry in shard.files) for shard in shards]
    limit = max(sizes[0] + sizes[1], sizes[2] + max(sizes[:2])) + 1
    dataset = cached(source, tmp_path, limit)
    for shard in (0, 1, 0, 2):
        dataset.fetch(shard)
        assert sum(file.stat().st_size for file in shard_files(tmp_path)) <= limit
    assert [file.stem for file in shard_files(tmp_path) if file.suffix == ".tar"] == ["00000", "00002"]
    assert_same_samples(dataset, open_dataset(mined_dataset))


@pytest.mark.parametrize(("short", "oldest_goes"), [(0, False), (1, True)])
def test_the_oldest_goes_for_the_very_byte_that_does_not_fit(source, tmp_path, short, oldest_goes):
    shards = open_dataset(source).manifest.shards
    limit = sum(entry.bytes for shard in shards for entry in shard.files) - short
    dataset = cached(source, tmp_path, limit)
    for shard in range(3):
        dataset.fetch(shard)
    assert sum(file.stat().st_size for file in shard_files(tmp_path)) <= limit
    assert [fetched(dataset, shard) for shard in range(3)] == [not oldest_goes, True, True]


def test_a_cache_smaller_than_a_shard_is_refused(source, tmp_path):
    with pytest.raises(AlignDetError, match="--cache-gb"):
        cached(source, tmp_path, limit=100)


def test_one_wrong_bit_is_an_error_and_leaves_nothing_in_the_cache(source, tmp_path):
    flip_a_bit(source / "shards" / "00001.tar")
    dataset = cached(source, tmp_path)
    with pytest.raises(DamagedShardError, match=r"00001\.tar has not the bytes that dataset\.json promises"):
        dataset.image_bytes(4)
    assert not [path for path in (tmp_path / "cache").rglob("*00001.tar*") if "locks" not in path.parts]
    assert dataset.image_bytes(0) == open_dataset(source).image_bytes(0)


def test_a_file_that_goes_on_and_on_is_not_copied_to_its_end(source, tmp_path):
    os.truncate(source / "shards" / "00001.tar", 2**30)
    dataset = cached(source, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, hard))
    try:
        with pytest.raises(DamagedShardError, match=r"00001\.tar has not the bytes"):
            dataset.fetch(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_stops_the_stream_or_is_skipped_with_its_reason(source, tmp_path, workers):
    flip_a_bit(source / "shards" / "00001.tar")

    def batches(policy):
        dataset = cached(source, tmp_path)
        sampler = StepSampler(dataset.shard_sizes, start=StreamState(0, 0, 0), batch_size=2, steps=4)
        stream = ProposalStream(dataset, damaged=policy)
        loader = DataLoader(stream, batch_sampler=sampler, num_workers=workers, collate_fn=list)
        return [sample for batch in loader for sample in readable(batch)]

    with pytest.raises(AlignDetError, match=r"00001\.tar has not the bytes") as caught:
        batches("raise")
    assert "Traceback" not in str(caught.value)
    samples = batches("skip")
    assert len(samples) == 8, "every step keeps its size"
    skipped = [sample for sample in samples if sample.skipped]
    assert len(skipped) == 3, "shard 00001 holds three images"
    assert all("00001.tar has not the bytes" in sample.skipped for sample in skipped)
    assert not {3, 4, 5} & {sample.index for sample in samples}


def skip_where_files_may_not_grow(
    source: Path, folder: Path, said: multiprocessing.connection.Connection
) -> None:
    """As on a disk that is full; for a process of its own."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    dataset = CachedDataset(source, CacheSpec(folder, GENEROUS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        said.send(ProposalStream(dataset, damaged="skip")[(0, 0)].skipped)
    except AlignDetError as error:
        said.send(error)


def test_a_full_cache_is_not_taken_for_damage(source, tmp_path):
    heard, said = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=skip_where_files_may_not_grow, args=(source, tmp_path / "cache", said)
    )
    process.start()
    process.join(60)
    error = heard.recv()
    assert isinstance(error, UnusableCacheError), error
    assert "choose another --cache folder" in str(error)


@pytest.mark.parametrize("fault", ["gone", "unreadable", "unmounted"])
def test_a_store_that_does_not_answer_is_not_taken_for_damage(source, tmp_path, monkeypatch, fault):
    """`skip` would train on other images than without the outage; a file that is gone is damage."""
    monkeypatch.setattr(cache, "_PAUSES", (0.01, 0.01))
    stream = ProposalStream(cached(source, tmp_path), damaged="skip")
    tar = source / "shards" / "00001.tar"
    tar.unlink()
    if fault == "unmounted":
        (source / "dataset.json").unlink()
    if fault == "gone":
        assert "00001.tar, which dataset.json names, is gone" in stream[(0, 4)].skipped
        return
    # Opens, and cannot be read, as a file of a server that is away.
    if fault == "unreadable":
        tar.mkdir()
    with pytest.raises(
        FetchFailedError, match=r"00001\.tar could not be brought to .* the same command goes on"
    ):
        stream[(0, 4)]


def test_a_store_that_answers_again_is_waited_for(source, mined_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_PAUSES", (0.01, 30.0))
    tar = source / "shards" / "00001.tar"
    kept = tar.rename(tmp_path / "kept")
    tar.mkdir()

    def answers(seconds):
        if seconds > 1:
            tar.rmdir()
            kept.rename(tar)

    monkeypatch.setattr(cache.time, "sleep", answers)
    assert cached(source, tmp_path).image_bytes(4) == open_dataset(mined_dataset).image_bytes(4)


def test_an_image_that_cannot_be_decoded_is_damage_too(source):
    dataset = open_dataset(source)
    record = dataset[2]
    blank_out(record)
    with pytest.raises(AlignDetError, match=f"image {record.key} .* cannot be decoded"):
        ProposalStream(dataset)[(0, 2)]
    assert record.key in ProposalStream(dataset, damaged="skip")[(0, 2)].skipped


@pytest.mark.parametrize("left", [4096, 0])
def test_a_file_that_a_power_cut_left_short_is_fetched_again(source, mined_dataset, tmp_path, left):
    cached(source, tmp_path).fetch(0)
    os.truncate(next(file for file in shard_files(tmp_path) if file.name == "00000.tar"), left)
    assert_same_samples(cached(source, tmp_path), open_dataset(mined_dataset))


def test_a_process_forked_while_a_shard_is_locked_does_not_keep_the_lock(source, tmp_path):
    dataset = cached(source, tmp_path)
    with dataset._cache_of_shards.reading(dataset.manifest.shards[0]):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    try:
        dataset._cache_of_shards._evict(GENEROUS)
        assert child.is_alive()
        assert shard_files(tmp_path) == [], "what nobody reads any more can go"
    finally:
        child.kill()
        child.join()


def test_a_dataset_that_changes_while_a_run_begins_is_not_streamed(source, tmp_path):
    dataset = open_dataset(source)
    consolidate(source)
    spec = CacheSpec(tmp_path / "cache", GENEROUS)
    with pytest.raises(AlignDetError, match="was changed while the run began"):
        step_loader(
            dataset,
            ProposalStream,
            StreamState(0, 0, 0),
            batch_size=1,
            steps=1,
            window=1,
            workers=0,
            cache=spec,
        )


def test_an_image_that_was_mined_above_the_usual_limit_of_pixels_is_streamed(mine_folder, tmp_path):
    (tmp_path / "photos").mkdir()
    picture = np.zeros((9480, 9480, 3), np.uint8)
    picture[:4000, :5000] = (40, 90, 200)
    cv2.imwrite(str(tmp_path / "photos" / "large.png"), picture)
    root = mine_folder(tmp_path / "photos", tmp_path / "out", Recipe(max_pixels=90_000_000))
    assert ProposalStream(open_dataset(root))[(0, 0)].image.shape == (3, 9480, 9480)


def unreadable_from_worker(stream: ProposalStream) -> Exception:
    """What a worker's batch of image 0 raises in the trainer."""
    loader = DataLoader(stream, batch_sampler=[[(0, 0)]], num_workers=1, collate_fn=list)
    with pytest.raises(AlignDetError) as caught:
        readable(next(iter(loader)))
    return caught.value


def test_an_outage_while_a_replacement_is_sought_is_not_taken_for_damage(source, tmp_path):
    blank_out(open_dataset(source)[0])
    with serving(source, wrong={"00001.tar": 403}) as url:
        stream = ProposalStream(open_dataset(url), damaged="skip")
        # Half the dataset away lies image 4, which the server does not give.
        with pytest.raises(UnansweredError, match="its server answers 403"):
            stream[(0, 0)]


def test_a_shard_that_cannot_be_fetched_in_anothers_place_ends_the_run(source, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_PAUSES", ())
    flip_a_bit(source / "shards" / "00000.tar")
    tar = source / "shards" / "00001.tar"
    tar.unlink()
    tar.mkdir()
    stream = ProposalStream(cached(source, tmp_path), damaged="skip")
    error = unreadable_from_worker(stream)
    assert isinstance(error, FetchFailedError)
    assert "Traceback" not in str(error)


def test_without_a_readable_image_a_worker_says_so_in_a_sentence(source):
    for tar in source.glob("shards/*.tar"):
        os.truncate(tar, 0)
    error = unreadable_from_worker(ProposalStream(open_dataset(source), damaged="skip"))
    assert str(error).startswith("neither image 0 of ")
    assert "Traceback" not in str(error)


def test_the_one_image_that_is_left_of_eight_stands_in_for_all(source):
    dataset = open_dataset(source)
    assert len(dataset) == 8
    for record in list(dataset)[:-1]:
        blank_out(record)
    stream = ProposalStream(dataset, damaged="skip")
    assert {stream[(0, index)].key for index in range(8)} == {dataset[7].key}


def test_of_two_images_one_stands_in_for_the_other_until_both_are_damaged(photos, mine_folder, tmp_path):
    dataset = open_dataset(mine_folder(photos / "more", tmp_path / "two"))
    stream = ProposalStream(dataset, damaged="skip")
    blank_out(dataset[1])
    assert stream[(0, 1)].key == dataset[0].key
    blank_out(dataset[0])
    with pytest.raises(AlignDetError, match="neither image 1 of"):
        stream[(0, 1)]


def test_datasets_share_a_folder_and_not_their_files(source, mined_dataset, tmp_path):
    # Files of the same names and sizes, one bit of which is another.
    tar = source / "shards" / "00000.tar"
    flip_a_bit(tar)
    manifest = json.loads((source / "dataset.json").read_bytes())
    manifest["shards"][0]["tar"]["sha256"] = hashlib.sha256(tar.read_bytes()).hexdigest()
    write_sealed(source / "dataset.json", manifest)
    for root in (mined_dataset, source, mined_dataset):
        dataset = cached(root, tmp_path)
        assert_same_samples(dataset, open_dataset(root))
        dataset.fetch(0)
        assert (dataset.root / "shards" / "00000.tar").read_bytes() == (
            root / "shards" / "00000.tar"
        ).read_bytes()


def test_what_a_killed_process_left_half_fetched_goes_and_what_is_on_its_way_stays(source, tmp_path):
    dataset = cached(source, tmp_path)
    left, fresh = (dataset.root / "shards" / f".0000{i}.tar.99999" for i in (1, 2))
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (0, time.time() - 2 * 3600))
    dataset.fetch(0)
    assert not left.exists()
    assert fresh.exists()


def test_a_disk_that_is_full_leaves_what_other_runs_read_of_the_cache(source, tmp_path):
    dataset = cached(source, tmp_path)
    before = sorted(path for path in (tmp_path / "cache").rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(AlignDetError, match=r"cannot be a shard cache: .*File too large"):
            cached(source, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (dataset.root / "dataset.json").read_bytes() == (source / "dataset.json").read_bytes()
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_what_is_in_a_cache_was_on_disk_before_it_got_its_name(source, tmp_path, monkeypatch):
    named = []
    unflushed = files_named_before_flushed(monkeypatch, lambda: named.append(len(shard_files(tmp_path))))
    cached(source, tmp_path).fetch(0)
    assert named == [0, 0, 1], "dataset.json, a tar and a table"
    assert unflushed == []


def test_a_disk_that_is_full_only_when_it_is_flushed_is_not_taken_for_damage(source, tmp_path, monkeypatch):
    stream = ProposalStream(cached(source, tmp_path), damaged="skip")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnusableCacheError, match="No space left"):
        stream[(0, 0)]
    assert shard_files(tmp_path) == []


def test_a_cache_whose_locks_cannot_be_had_is_not_taken_for_damage(source, tmp_path):
    dataset = cached(source, tmp_path)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UnusableCacheError, match=r"locks.* cannot be opened \(No such file"):
        ProposalStream(dataset, damaged="skip")[(0, 0)]


class WrongOnce(Static):
    """Each tar comes with a bit turned over the first time."""

    def _file(self, data, cut):
        self.asked[self.path] += self.command == "GET" and self.path.endswith(".tar")
        wrong = bytes([data[0] ^ 4]) + data[1:]
        super()._file(wrong if self.asked[self.path] == 1 else data, cut)


def test_a_shard_that_came_wrong_once_is_asked_for_again(mined_dataset, tmp_path):
    with serving(mined_dataset, WrongOnce) as url:
        assert_same_samples(cached(as_path(url), tmp_path), open_dataset(mined_dataset))


def fetched(dataset: CachedDataset, shard: int) -> bool:
    return len(list((dataset.root / "shards").glob(f"0000{shard}.*"))) == 2


def test_a_shard_that_cannot_be_fetched_does_not_end_prefetching(source, tmp_path):
    flip_a_bit(source / "shards" / "00000.tar")
    dataset = cached(source, tmp_path)
    Prefetcher(dataset, threads=1).expect([0, 2])
    wait_until(lambda: fetched(dataset, 2))


def test_what_is_no_longer_expected_is_not_fetched(source, tmp_path):
    """The one thread hangs in shard 0, a pipe, while it is told to expect another than before."""
    dataset, pipe = cached(source, tmp_path), source / "shards" / "00000.tar"
    content = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    prefetcher = Prefetcher(dataset, threads=1)
    prefetcher.expect([0, 1])
    with pipe.open("wb") as writer:  # opens as soon as somebody reads
        prefetcher.expect([2])
        writer.write(content)
    wait_until(lambda: fetched(dataset, 2))
    assert fetched(dataset, 0)
    assert not fetched(dataset, 1)


def test_only_a_remote_dataset_is_cached_unasked_and_a_folder_is_taken_where_one_is_named(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local, remote = Path("dataset"), as_path("http://127.0.0.1:9/dataset")
    assert cache_for(local, None, 2) is None
    assert cache_for(remote, None, 2) == (tmp_path / "aligndet" / "shards", 2_000_000_000)
    for root in (local, remote):
        assert cache_for(root, tmp_path / "named", 0.5) == (tmp_path / "named", 500_000_000)


def read_all(source: Path, folder: Path, limit: int, seed: int, failures) -> None:
    try:
        dataset, expected = CachedDataset(source, CacheSpec(folder, limit)), open_dataset(source)
        for index in np.random.default_rng(seed).integers(0, len(expected), 60).tolist():
            assert dataset.image_bytes(index) == expected.image_bytes(index)
    except Exception as error:
        failures.put(repr(error))


def test_processes_share_a_cache_that_holds_one_shard(source, tmp_path):
    sizes = [sum(entry.bytes for entry in shard.files) for shard in open_dataset(source).manifest.shards]
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    processes = [
        context.Process(target=read_all, args=(source, tmp_path / "cache", max(sizes) + 1, seed, failures))
        for seed in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_the_order_tells_what_to_prefetch(source, tmp_path):
    dataset = cached(source, tmp_path)
    expected = []
    # Of this seed the two epochs begin with different shards.
    sampler = StepSampler(
        dataset.shard_sizes,
        start=StreamState(2, 0, 0),
        batch_size=1,
        steps=16,
        window=1,
        expect=expected.append,
    )
    read = [dataset.locate(index)[0] for ((_, index),) in sampler]
    assert len(expected) == 6, "three windows an epoch"
    assert expected[0][0] != expected[3][0]
    assert [shards[0] for shards in expected] == list(dict.fromkeys(read[:8])) + list(dict.fromkeys(read[8:]))
    assert [shards[1] for shards in expected[:-1]] == [shards[0] for shards in expected[1:]]
    Prefetcher(dataset).expect([2, 0])
    wanted = ["00000.parquet", "00000.tar", "00002.parquet", "00002.tar"]
    wait_until(lambda: [file.name for file in shard_files(tmp_path)] == wanted)


def test_a_copy_in_another_process_opens_the_same_cache(source, tmp_path):
    dataset = cached(source, tmp_path)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.root == dataset.root
    assert copy.image_bytes(1) == dataset.image_bytes(1)


def test_images_left_where_they_are_are_streamed_too(photos, mine_folder, mined_dataset, tmp_path):
    reference = mine_folder(photos, tmp_path / "reference", embed=False)
    assert_same_samples(open_dataset(reference), open_dataset(mined_dataset))
    dataset = cached(reference, tmp_path)
    assert_same_samples(dataset, open_dataset(mined_dataset))
    first, second = (ProposalStream(each)[(0, 3)] for each in (dataset, open_dataset(mined_dataset)))
    assert np.array_equal(first.image.numpy(), second.image.numpy())


@pytest.mark.parametrize("how", [{"parts": False}, {"parts": False, "sized": False}, {"index": 403}])
def test_samples_come_from_a_web_server_whatever_it_can_do(mined_dataset, tmp_path, monkeypatch, how):
    monkeypatch.setattr("proposals.remote_files._PIECE", 1000)
    with serving(mined_dataset, **how) as url:
        assert_same_samples(cached(as_path(url), tmp_path), open_dataset(mined_dataset))


@pytest.mark.parametrize("wrong", [503, "cut"])
def test_a_web_server_that_hiccups_is_asked_again_and_is_no_damage(
    mined_dataset, tmp_path, monkeypatch, wrong
):
    monkeypatch.setattr(cache, "_PAUSES", (0.01, 0.01))
    with serving(mined_dataset, wrong={".tar": wrong}, times=2) as url:
        assert_same_samples(cached(as_path(url), tmp_path / "twice"), open_dataset(mined_dataset))
    with serving(mined_dataset, wrong={".tar": wrong}) as url:
        dataset = cached(as_path(url), tmp_path / "always")
        with pytest.raises(FetchFailedError, match="could not be brought"):
            dataset.image_bytes(0)


def test_skipping_what_is_damaged_skips_nothing_that_nobody_answers_for(mined_dataset, monkeypatch):
    monkeypatch.setattr("proposals.fetch.time.sleep", lambda seconds: None)
    with serving(mined_dataset, wrong={".tar": 503}) as url:
        stream = ProposalStream(open_dataset(url), damaged="skip")
        with pytest.raises(UnansweredError, match="its server answers 503"):
            stream[(0, 0)]


def test_a_web_server_that_refuses_a_shard_is_not_asked_again(mined_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_PAUSES", (3600.0,))
    with serving(mined_dataset, wrong={".tar": 403}) as url:
        dataset = cached(as_path(url), tmp_path)
        with pytest.raises(FetchFailedError, match="its server answers 403"):
            dataset.image_bytes(0)


def test_a_dataset_on_a_web_server_names_no_files_of_this_machine_for_a_cache_either(
    photos, mine_folder, tmp_path
):
    with (
        serving(mine_folder(photos, tmp_path / "out", embed=False)) as url,
        pytest.raises(AlignDetError, match="may not name local files"),
    ):
        cached(as_path(url), tmp_path / "cache")


def test_a_shard_that_a_web_server_has_not_is_gone(mined_dataset, tmp_path):
    with serving(mined_dataset, wrong={".tar": 404}) as url:
        dataset = cached(as_path(url), tmp_path)
        with pytest.raises(DamagedShardError, match="is gone"):
            dataset.image_bytes(0)


SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def bucket(monkeypatch):
    """An S3 server on loopback with an empty bucket."""
    pytest.importorskip("moto", reason="the S3 server is moto's: pip install '.[dev]'")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        port = next(line for line in server.stdout if line.strip().isdigit()).strip()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        as_path("s3://mined/x").fs.mkdir("mined")
        yield as_path("s3://mined/dataset")
        server.kill()


@pytest.mark.slow
def test_a_run_streams_from_an_object_store_with_the_losses_of_a_local_one(bucket, mined_dataset, tmp_path):
    for file in mined_dataset.rglob("*"):
        if file.is_file():
            (bucket / file.relative_to(mined_dataset).as_posix()).write_bytes(file.read_bytes())
    figures = []
    for data, work in ((mined_dataset, "local"), (bucket, "remote")):
        arguments = command(data, tmp_path / work, "--cache", str(tmp_path / "cache"), "--cache-gb", "0.001")
        arguments[arguments.index("--iterations") + 1] = "6"
        arguments[arguments.index("--workers") + 1] = "2"
        finish(Command(arguments))
        figures.append(losses(tmp_path / work))
    assert figures[0] == figures[1]
    assert len(figures[0]) == 6


@pytest.mark.slow
def test_a_run_says_how_many_images_it_skipped(source, tmp_path):
    flip_a_bit(source / "shards" / "00001.tar")
    arguments = command(source, tmp_path / "work", "--damaged", "skip", "--cache", str(tmp_path / "cache"))
    arguments[arguments.index("--iterations") + 1] = "8"
    output = " ".join(finish(Command(arguments)).split())
    assert "skipped so far: 6 images, replaced by others of the dataset" in output
    assert "00001.tar has not the bytes" in output
    strict = [word if word != "skip" else "raise" for word in arguments] + ["--no-resume"]
    output = finish(Command(strict), expect=1)
    assert "--damaged skip" in " ".join(output.split())
    assert "Traceback" not in output
