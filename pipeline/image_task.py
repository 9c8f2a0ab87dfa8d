"""One image: from its bytes to its filtered proposals, or to the reason why it has none."""

import hashlib
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2

from proposals.boxes import scale
from proposals.errors import AlignDetError
from proposals.filter_spec import Filtered, FilterSpec
from proposals.filters import apply_filter
from proposals.images import Bgr, ImageRejected, decode_bgr, ran_out_of_memory, resize_max_side
from proposals.recipe import Recipe
from proposals.selective_search import propose
from proposals.selective_search.types import Engine, Proposals

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


def mine_image(data: bytes, sha256: str, kernel: Kernel, watch: Stopwatch) -> Found | Refusal:
    """Decode ``data``, search it, filter what is found. sha256: of ``data``, hex; with the recipe it seeds the order.

    Raises MemoryError whichever library ran out of memory, and AlignDetError when this installation cannot search.
    """
    try:
        with watch.stage("decode"):
            image = decode_bgr(data, max_pixels=kernel.recipe.max_pixels)
        proposals = _proposals(image.bgr, kernel, kernel.recipe.image_seed(sha256), watch)
    except ImageRejected as error:
        return Refusal.of(error)
    except cv2.error as error:
        if ran_out_of_memory(error):
            raise MemoryError from error
        raise
    return Found(image.width, image.height, image.orientation, proposals)


def _proposals(bgr: Bgr, kernel: Kernel, seed: int, watch: Stopwatch) -> Filtered:
    height, width = bgr.shape[:2]
    recipe = kernel.recipe
    with watch.stage("resize"):
        small, scale_x, scale_y = resize_max_side(bgr, recipe.max_side)
    with watch.stage("propose"):
        found = _search(small, kernel, seed)
    with watch.stage("filter"):
        boxes = scale(found.boxes, scale_x, scale_y)
        spec = FilterSpec.parse(recipe.filter)
        return apply_filter(boxes, found.rank, width, height, spec, recipe.rank)


def _search(bgr: Bgr, kernel: Kernel, seed: int) -> Proposals:
    try:
        return propose(bgr, kernel.recipe.mode, seed, kernel.engine)
    except (AlignDetError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            raise
        raise ImageRejected("propose", "search_failed", type(error).__name__) from error


def _traceback_hash(error: BaseException) -> str:
    # Function names and exception types only: line numbers and paths differ between machines and releases.
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(type(link).__name__)
        chain.extend(frame.name for frame in traceback.extract_tb(link.__traceback__))
        link = link.__cause__
    return hashlib.sha256("\n".join(chain).encode()).hexdigest()[:_HASH_LENGTH]
