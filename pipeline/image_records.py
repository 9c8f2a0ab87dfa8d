"""What a worker asks of one image and what it gets back, the time it took among it.

Apart from `pipeline.image_task`, which does the work: the processes that only hand images on import no compiler.
"""

import hashlib
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from proposals.filter_spec import Filtered
from proposals.images import ImageRejected
from proposals.recipe import Recipe
from proposals.selective_search.types import Engine

_HASH_LENGTH = 16


@dataclass(frozen=True)
class Kernel:
    """What is done to every image of a job. engine: of the selective search; it does not change the boxes."""

    recipe: Recipe
    engine: Engine = "fast"


@dataclass(frozen=True)
class Found:
    """The proposals of one image, in px of the upright original, whose size is ``width`` x ``height``."""

    width: int
    height: int
    orientation: int
    proposals: Filtered


@dataclass(frozen=True)
class Refusal:
    """Why one image gives no row: see `ImageRejected`. traceback_hash: 16 hex digits, the same for the same place."""

    stage: str
    reason: str
    detail: str
    traceback_hash: str

    @classmethod
    def of(cls, error: ImageRejected) -> "Refusal":
        """The refusal that ``error`` stands for."""
        return cls(error.stage, error.reason, error.detail, _traceback_hash(error))

    @classmethod
    def without_traceback(cls, stage: str, reason: str, detail: str) -> "Refusal":
        """A refusal by somebody who watched a process end, from outside."""
        digest = hashlib.sha256(f"{stage}:{reason}".encode()).hexdigest()
        return cls(stage, reason, detail, digest[:_HASH_LENGTH])


@dataclass
class Stopwatch:
    """Seconds spent per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - start})

    def add(self, seconds: dict[str, float]) -> None:
        """Add what another stopwatch measured."""
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def _traceback_hash(error: BaseException) -> str:
    # Function names and exception types only: line numbers and paths differ between machines and releases.
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(type(link).__name__)
        chain.extend(frame.name for frame in traceback.extract_tb(link.__traceback__))
        link = link.__cause__
    return hashlib.sha256("\n".join(chain).encode()).hexdigest()[:_HASH_LENGTH]
