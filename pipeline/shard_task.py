"""One task: read, decode, propose, filter, write one shard. Knows nothing of Ray."""

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.plan import ShardTask
from pipeline.search import Search, searcher
from pipeline.sources import FolderSource
from proposals.boxes import scale
from proposals.dataset import layout
from proposals.dataset.manifest import CommitRecord, Rejection, library_versions, write_model
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.errors import AlignDetError
from proposals.filters import Filtered, FilterSpec, apply_filter
from proposals.images import Bgr, ImageRejected, decode_bgr, resize_max_side
from proposals.recipe import Recipe
from proposals.selective_search.types import Engine


@dataclass(frozen=True)
class Count:
    """What a shard has given so far."""

    images: int = 0
    proposals: int = 0
    rejected: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.images + other.images, self.proposals + other.proposals, self.rejected + other.rejected
        )


@dataclass(frozen=True)
class Work:
    """What every shard of a job shares. job: the job's fingerprint, written into each commit record.

    engine: of the selective search; it does not change the boxes.
    """

    source: FolderSource
    out: Path
    recipe: Recipe
    job: str
    engine: Engine = "fast"


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
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def mine_shard(
    task: ShardTask, work: Work, on_progress: Callable[[Count], None] | None = None
) -> CommitRecord:
    """Mine one shard and commit it. A broken image becomes a `Rejection`, never an error.

    ``on_progress`` is called after every image with the shard's count so far. Raises OSError when the output
    cannot be written.
    """
    watch, rejected, count = Stopwatch(), [], Count()
    with watch.stage("total"), searcher(work.engine) as search, ShardWriter(work.out, task.name) as writer:
        for key, uri in zip(task.keys, task.uris, strict=True):
            try:
                image = _mine_image(key, uri, work, search, watch)
            except ImageRejected as error:
                rejected.append(_rejection(key, uri, error))
                count += Count(rejected=1)
            else:
                with watch.stage("write"):
                    writer.add(image)
                count += Count(images=1, proposals=len(image.proposals.rank))
            if on_progress is not None:
                on_progress(count)
        with watch.stage("write"):
            shard = writer.commit()
    record = CommitRecord(
        job=work.job, shard=shard, rejected=tuple(rejected), timing=watch.seconds, versions=library_versions()
    )
    write_model(layout.record_path(work.out, task.name), record)
    return record


def _mine_image(key: str, uri: str, work: Work, search: Search, watch: Stopwatch) -> MinedImage:
    with watch.stage("read"):
        data = work.source.read(uri)
        digest = hashlib.sha256(data).hexdigest()
    with watch.stage("decode"):
        image = decode_bgr(data, max_pixels=work.recipe.max_pixels)
    seed = work.recipe.image_seed(digest)
    proposals = _proposals(image.bgr, work.recipe, seed, search, watch)
    return MinedImage(key, uri, data, digest, image.width, image.height, image.orientation, proposals)


def _proposals(bgr: Bgr, recipe: Recipe, seed: int, search: Search, watch: Stopwatch) -> Filtered:
    height, width = bgr.shape[:2]
    with watch.stage("resize"):
        small, scale_x, scale_y = resize_max_side(bgr, recipe.max_side)
    with watch.stage("propose"):
        try:
            found = search(small, recipe.mode, seed)
        except (AlignDetError, MemoryError, ChildProcessError):
            raise
        except Exception as error:
            raise ImageRejected("propose", "search_failed", type(error).__name__) from error
    with watch.stage("filter"):
        boxes = scale(found.boxes, scale_x, scale_y)
        spec = FilterSpec.parse(recipe.filter)
        return apply_filter(boxes, found.rank, width, height, spec, recipe.rank)


def _rejection(key: str, uri: str, error: ImageRejected) -> Rejection:
    return Rejection(
        key=key,
        uri=uri,
        stage=error.stage,
        reason=error.reason,
        detail=error.detail,
        traceback_hash=_traceback_hash(error),
    )


def _traceback_hash(error: BaseException) -> str:
    # Function names and exception types only: line numbers and paths differ between machines and releases.
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(type(link).__name__)
        chain.extend(frame.name for frame in traceback.extract_tb(link.__traceback__))
        link = link.__cause__
    return hashlib.sha256("\n".join(chain).encode()).hexdigest()[:16]
