"""Compiling ahead of the first image: for container images, cluster nodes and Ray runtime environments."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proposals.selective_search.engines import load_kernels, propose
from proposals.selective_search.types import MODES


@dataclass(frozen=True)
class Warmth:
    """What a warm-up found and did.

    directory: where the kernels are kept; None when nothing can be written, so that every process compiles.
    compiled: whether they had to be compiled now. seconds: how long that, or loading them, took.
    """

    directory: Path | None
    compiled: bool
    seconds: float


def warm_up() -> Warmth:
    """Compile the fast engine's kernels, or find them compiled, and try every mode once."""
    start = time.perf_counter()
    from proposals.selective_search import cache

    cold = not cache.is_warm()
    load_kernels()
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[12:36, 16:48] = 200
    for mode in MODES:
        propose(picture, mode)
    return Warmth(cache.directory(), cold, time.perf_counter() - start)
