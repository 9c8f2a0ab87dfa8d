"""Batches of samples for a run, decoded in worker processes that end when the trainer says so."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import DataLoader, Dataset

from aligndet_train.config import PretrainConfig
from aligndet_train.stream import ProposalStream, Sample, StepSampler, StreamState
from aligndet_train.stream.cache import CachedDataset, CacheSpec, Prefetcher
from aligndet_train.stream.dataset import Damaged
from aligndet_train.stream.packing import SampleLoader
from proposals.dataset import ProposalDataset
from proposals.dataset.clusters import read_clusters
from proposals.errors import AlignDetError

# For the trainer to finish its step and write a checkpoint, with its workers alive.
_SECONDS_TO_STOP = 100


def build_loader(
    dataset: ProposalDataset,
    config: PretrainConfig,
    *,
    steps: int,
    workers: int,
    start: StreamState | None = None,
    damaged: Damaged = "raise",
    cache: CacheSpec | None = None,
) -> "DataLoader[Sample]":
    """``steps`` batches (lists of samples) of this rank, from ``start`` on; None: from the beginning.

    damaged: see ProposalStream. cache: see RunOptions. Batches of workers go through ``readable``.
    """
    clusters = None if config.classes is None else read_clusters(dataset.root, dataset.manifest)
    return step_loader(
        dataset,
        lambda dataset: ProposalStream(dataset, config.proposals_per_image, clusters, damaged),
        start or StreamState(config.seed, 0, 0),
        batch_size=config.batch_size,
        steps=steps,
        window=config.shard_window,
        workers=workers,
        cache=cache,
    )


def step_loader(
    dataset: ProposalDataset,
    samples: Callable[[ProposalDataset], Dataset[Sample]],
    start: StreamState,
    *,
    batch_size: int,
    steps: int,
    window: int,
    workers: int,
    cache: CacheSpec | None = None,
) -> "DataLoader[Sample]":
    """``steps`` batches of this rank, from ``start`` on, of what ``samples`` makes of the dataset or its cached form.

    batch_size: of this rank. window: see StepSampler. cache: see RunOptions. Raises AlignDetError when what the cache
    begins to fetch is no longer ``dataset``.
    """
    expect = None
    if cache is not None:
        cached = CachedDataset(dataset.root, cache)
        if cached.manifest != dataset.manifest:
            raise AlignDetError(f"{dataset.root} was changed while the run began: start it again")
        dataset, expect = cached, Prefetcher(cached).expect
    sampler = StepSampler(
        dataset.shard_sizes.tolist(),
        start=start,
        batch_size=batch_size,
        steps=steps,
        rank=get_rank(),
        world_size=get_world_size(),
        window=window,
        expect=expect,
    )
    return SampleLoader(
        samples(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_parent,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def leave_signals_to_the_parent(worker_id: int) -> None:
    """A DataLoader worker's start: Ctrl-C, a terminal that is closed, torchrun and Slurm signal the whole group, the
    trainer says when to stop.

    A worker whose trainer is killed notices by itself; one that was asked to end does so after a while.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_TO_STOP))


@contextmanager
def workers_ended(loader: "DataLoader[Sample]") -> Iterator[None]:
    """End the loader's processes on the way out, also of an error: at exit Python would signal and wait for them."""
    try:
        yield
    finally:
        if loader.num_workers and loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
