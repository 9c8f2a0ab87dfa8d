"""One task: read, search in a guarded child, write one shard. Knows nothing of Ray."""

import hashlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.image_process import DEPTH, ImageProcess, shared_process
from pipeline.image_records import Found, Kernel, Refusal, Stopwatch
from pipeline.limits import Limits
from pipeline.plan import ShardTask
from pipeline.planted_faults import strike_worker
from pipeline.sources import Source, SourceUnavailableError
from pipeline.sources.base import as_text
from pipeline.timed_reader import timed_reads
from proposals.dataset import layout
from proposals.dataset.manifest import CommitRecord, Rejection, library_versions, write_model
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.errors import AlignDetError
from proposals.fetch import as_spelled
from proposals.image_roots import ImageRoot
from proposals.images import ImageRejected
from proposals.paths import scheme_of
from proposals.recipe import Recipe
from proposals.selective_search.types import Engine

Quarantine = Mapping[str, Refusal]


class OtherVersionsError(AlignDetError):
    """This machine has other versions than the job was started with; another one may not. node: Ray's id of it."""

    node = ""


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

    engine: of the selective search; it does not change the boxes. limits: of one image. embed: whether image files
    become part of the dataset. versions: `code_versions` of the job, None where that is compared later. as_listed: an
    image of another size than it was listed with is rejected.
    """

    source: Source
    out: Path
    recipe: Recipe
    job: str
    engine: Engine = "fast"
    limits: Limits = field(default_factory=Limits)
    embed: bool = True
    versions: Mapping[str, str] | None = None
    as_listed: bool = True


def mine_shard(
    task: ShardTask,
    work: Work,
    on_progress: Callable[[Count], None] | None = None,
    quarantine: Quarantine | None = None,
) -> CommitRecord:
    """Mine one shard and commit it. A broken image becomes a `Rejection`, never an error.

    ``on_progress`` is called after every image with the shard's count so far. quarantine: images, by key, that are
    refused unseen. Raises OSError when the output cannot be written or the source does not answer, in time or at
    all; ChildProcessError when the machine kills the process that searches; OtherVersionsError when this machine has
    other library versions than the job.
    """
    _require_versions(work)
    watch = Stopwatch()
    outcomes = mined_images(task, work, watch, quarantine)
    # While the last image is searched there is time for the disk.
    return write_shard(task.name, work, outcomes, watch, on_progress, flush_after=len(task) - 1)


def write_shard(
    name: str,
    work: Work,
    outcomes: Iterable[MinedImage | Rejection],
    watch: Stopwatch,
    on_progress: Callable[[Count], None] | None = None,
    flush_after: int | None = None,
) -> CommitRecord:
    """Write ``outcomes`` as shard ``name``: its files, then the commit record that makes them count.

    flush_after: bring what is written to disk after so many outcomes already.
    """
    rejected, count = [], Count()
    with watch.stage("total"), ShardWriter(work.out, name, embed=work.embed) as writer:
        for outcome in outcomes:
            if isinstance(outcome, Rejection):
                rejected.append(outcome)
                count += Count(rejected=1)
            else:
                with watch.stage("write"):
                    writer.add(outcome)
                count += Count(images=1, proposals=len(outcome.proposals.rank))
            if on_progress is not None:
                on_progress(count)
            if count.images + count.rejected == flush_after:
                with watch.stage("write"):
                    writer.flush()
        with watch.stage("write"):
            shard = writer.commit()
    record = CommitRecord(
        job=work.job, shard=shard, rejected=tuple(rejected), timing=watch.seconds, versions=library_versions()
    )
    write_model(layout.record_path(work.out, name), record)
    if not shard.images:
        # Of an attempt that was killed, when an image of them could still be read.
        for path in (layout.tar_path(work.out, name), layout.parquet_path(work.out, name)):
            path.unlink(missing_ok=True)
    return record


def code_versions(libraries: Mapping[str, str] | None = None) -> dict[str, str]:
    """``libraries`` (None: those that are here), which a dataset names, and aligndet, which may be newer or older."""
    found = dict(library_versions() if libraries is None else libraries)
    with suppress(PackageNotFoundError):  # where it was not installed but put on the path
        found["aligndet"] = version("aligndet")
    return found


@cache
def _here() -> dict[str, str]:
    return code_versions()


def _require_versions(work: Work) -> None:
    # Not the CPU level of OpenCV: a cluster may have processors of several kinds, and commit records tell them apart.
    here = _here()
    wrong = [
        f"{name} {here.get(name)} instead of {version}"
        for name, version in (work.versions or {}).items()
        if name != "opencv_dispatch" and here.get(name) != version
    ]
    if wrong:
        raise OtherVersionsError(
            f"{socket.gethostname()} has {', '.join(wrong)}, which the job was started with. Install "
            "the same versions on every machine of the cluster"
        )


def probe_images(task: ShardTask, work: Work) -> None:
    """Do to the images of ``task`` what `mine_shard` does and write nothing: does a worker survive them?"""
    _require_versions(work)
    for _ in mined_images(task, work, Stopwatch()):
        pass


@dataclass(frozen=True)
class _Read:
    """An image as the source gave it. data and sha256 are empty when ``refusal`` says why there is none."""

    key: str
    uri: str
    data: bytes = b""
    sha256: str = ""
    refusal: Refusal | None = None


def mined_images(
    task: ShardTask, work: Work, watch: Stopwatch, quarantine: Quarantine | None = None
) -> Iterator[MinedImage | Rejection]:
    """Every image of ``task``, in order, with its proposals or the reason why it has none."""
    # The child searches one image and has the next one already, while this process writes the one before and reads.
    process = shared_process(Kernel(work.recipe, work.engine), work.limits)
    begun: deque[_Read] = deque()
    for image in _reads(task, work, quarantine or {}, watch):
        _begin(image, process)
        begun.append(image)
        if len(begun) == DEPTH:
            yield _finish(begun.popleft(), process, watch)
    while begun:
        yield _finish(begun.popleft(), process, watch)


def _reads(task: ShardTask, work: Work, quarantine: Quarantine, watch: Stopwatch) -> Iterator[_Read]:
    listed = frozenset(uri for uri, size in zip(task.uris, task.sizes, strict=False) if size >= 0)
    with timed_reads(partial(_read_source, work.source, listed), work.limits.read_seconds) as read:
        sizes = (work.as_listed and task.sizes) or (-1,) * len(task)
        for key, uri, size in zip(task.keys, task.uris, sizes, strict=True):
            if key in quarantine:
                yield _Read(key, uri, refusal=quarantine[key])
                continue
            strike_worker(uri)
            with watch.stage("read"):
                image = _read(key, uri, size, read)
            yield image


def _read_source(source: Source, listed: frozenset[str], uri: str) -> bytes:
    try:
        return source.read(uri)
    except ImageRejected as error:
        if error.reason in ("missing", "permission_denied") and not scheme_of(uri):
            _require_folder(_folder_of(source.images, uri, uri in listed))
        raise


def _folder_of(images: ImageRoot, uri: str, listed: bool) -> str | None:
    """The folder that must be there, with something in it, for ``uri`` to be missing; None where that says nothing."""
    if scheme_of(images.root):
        return None
    if not listed:
        return None if uri.startswith("/") else images.root or None
    # Its own, and not the source's: mounts lie below that as well, and links lead out of it.
    place = images.file_of(uri)
    spelled = Path(as_spelled(place))
    if spelled.is_symlink():
        return str(spelled.resolve().parent)
    folder = Path(place).parent
    return str(folder if uri.startswith("/") else _nearest(folder, Path(images.root)))


def _nearest(folder: Path, root: Path) -> Path:
    """``folder``, or the first above it that is there, ``root`` at last: a lost mount leaves an empty folder."""
    while folder != root and not os.path.lexists(as_spelled(str(folder))):
        folder = folder.parent
    return folder


def _require_folder(folder: str | None) -> None:
    """Raise SourceUnavailableError when ``folder`` itself is gone or empty, as where a mount was lost."""
    if folder is None:
        return
    try:
        with os.scandir(as_spelled(folder)) as entries:
            if next(entries, None) is not None:
                return
        why = "it is empty"
    except NotADirectoryError:
        return
    except OSError as error:
        why = str(error.strerror)
    raise SourceUnavailableError(
        f"the folder of the images, {as_text(folder)}, cannot be read: {why}. Is it mounted?"
    )


def _read(key: str, uri: str, size: int, read: Callable[[str], bytes]) -> _Read:
    try:
        data = read(uri)
        if size not in (-1, len(data)):
            # The plan would tell another size than the row for ever, and refuse what is in the dataset as changed.
            raise ImageRejected(
                "read", "changed", f"{size} bytes when it was listed, {len(data)} when it was read"
            )
    except ImageRejected as error:
        return _Read(key, uri, refusal=Refusal.of(error))
    return _Read(key, uri, data, hashlib.sha256(data).hexdigest())


def _begin(image: _Read, process: ImageProcess) -> None:
    if image.refusal is None:
        process.begin(image.uri, image.data, image.sha256)


def _finish(image: _Read, process: ImageProcess, watch: Stopwatch) -> MinedImage | Rejection:
    outcome: Found | Refusal
    if image.refusal is not None:
        outcome = image.refusal
    else:
        outcome, seconds = process.finish()
        watch.add(seconds)
    if isinstance(outcome, Refusal):
        return Rejection(
            key=image.key,
            uri=image.uri,
            stage=outcome.stage,
            reason=outcome.reason,
            detail=outcome.detail,
            traceback_hash=outcome.traceback_hash,
        )
    size = outcome.width, outcome.height, outcome.orientation
    return MinedImage(image.key, image.uri, image.data, image.sha256, *size, outcome.proposals)
