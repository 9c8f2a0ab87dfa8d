"""The search as a shard task calls it, repeatable also in a process that has other threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

from proposals.images import Bgr
from proposals.selective_search import Mode, Proposals, propose
from proposals.selective_search.types import Engine

Search = Callable[[Bgr, Mode, int], Proposals]


@contextmanager
def searcher(engine: Engine) -> Iterator[Search]:
    """A function (bgr, mode, seed) -> Proposals, valid inside the block.

    OpenCV draws ranks from C's `rand()`, which every thread of a process advances, and a Ray worker has threads
    that do: the oracle therefore searches in a child process of its own.
    """
    if engine != "opencv":
        yield partial(propose, engine=engine)
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda bgr, mode, seed: pool.submit(propose, bgr, mode, seed, engine).result()
