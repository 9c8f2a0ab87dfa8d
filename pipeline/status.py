"""What a job has done and does now, from marker files alone: plan, commit records, the driver's last beat."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.heartbeat import SILENCE_SECONDS, age_of, read_heartbeat
from proposals.dataset import layout
from proposals.dataset.assemble import read_identity
from proposals.dataset.bounds import read_parquet
from proposals.dataset.files import NotListedError, sizes_in
from proposals.dataset.manifest import CommitRecord, Manifest, read_manifest, read_record
from proposals.errors import AlignDetError, DeniedError, UnansweredError
from proposals.paths import is_remote, is_there, is_web

State = Literal["finished", "running", "stopped"]
_READERS = 32  # of an object store, at once
_COUNTED = frozenset({"images", "rejected", "proposals", "rate", "running", "failed"})


@dataclass(frozen=True)
class JobStatus:
    """Counts of images and shards by now. images: with boxes; planned: of the source, rejected ones included.

    running: names of shards in flight. failed: shards that this run gave up, with reasons. rate: images per second
    of late, None unless running; eta: seconds left at that rate. stages: core seconds by stage, over all shards.
    listed: False where a web server does not list folders, so that the counts are those of dataset.json.
    """

    state: State
    planned: int
    shards: int
    shards_done: int = 0
    images: int = 0
    proposals: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    running: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    rate: float | None = None
    eta: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    listed: bool = True

    @property
    def slowest_stage(self) -> str | None:
        """The stage that took most core time; None before the first shard is done."""
        return max(self.stages, key=lambda stage: self.stages[stage], default=None)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {**asdict(self), "slowest_stage": self.slowest_stage}


class StatusReader:
    """Looks at one folder again and again; a commit record is read once.

    Raises AlignDetError when the folder holds no job.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._known: set[str] = set()
        self._shards_done = self._images = self._proposals = 0
        self._reasons: Counter[str] = Counter()
        self._stages: Counter[str] = Counter()

    def read(self) -> JobStatus:
        """The status now."""
        plan = self._plan()
        planned = read_identity(plan).source.images
        shards = _shard_count(plan, planned)
        names, manifest = self._record_names(plan)
        self._read_records(names)
        status = JobStatus(
            state="stopped",
            planned=planned,
            shards=shards,
            shards_done=self._shards_done,
            images=self._images,
            proposals=self._proposals,
            rejected=self._reasons.total(),
            reasons=dict(self._reasons.most_common()),
            stages=dict(self._stages.most_common()),
        )
        if manifest is not None:
            return _as_declared(status, manifest)
        if self._is_finished(plan):
            return _replaced(status, state="finished")
        return _with_beat(status, read_heartbeat(self._out))

    def _plan(self) -> Path:
        for name in (layout.APPEND, layout.PLAN):
            if is_there(self._out / name):
                return self._out / name
        raise AlignDetError(f"{self._out} holds no mining job. Start one: aligndet mine IMAGES {self._out}")

    def _record_names(self, plan: Path) -> tuple[list[str], Manifest | None]:
        """The commit records that there are; where nobody lists them, those of the manifest, and the manifest."""
        try:
            names = [name for name in sizes_in(self._out / layout.SHARDS) if name.endswith(".json")]
        except NotListedError as error:
            if not self._is_finished(plan):
                raise AlignDetError(
                    f"{self._out} is not finished, and its server does not list folders, so nobody here can tell how "
                    "far it is. Ask where it is mined: aligndet status FOLDER"
                ) from error
            names = []
        if is_web(self._out) and self._is_finished(plan):
            # Of a folder, a web server may show nothing, or some page that is no list of what is in it.
            manifest = read_manifest(self._out)
            declared = [f"{shard.name}.json" for shard in manifest.shards]
            if not names or not set(declared) <= set(names):
                return declared, manifest
        return names, None

    def _is_finished(self, plan: Path) -> bool:
        return plan.name == layout.PLAN and is_there(self._out / layout.MANIFEST)

    def _read_records(self, names: list[str]) -> None:
        folder = self._out / layout.SHARDS
        fresh = [name for name in names if name not in self._known]
        with ThreadPoolExecutor(_READERS if is_remote(self._out) else 1) as pool:
            found = pool.map(_record_or_none, [folder / name for name in fresh])
            for name, record in zip(fresh, found, strict=True):
                if record is not None:
                    self._known.add(name)
                    self._count(record)

    def _count(self, record: CommitRecord) -> None:
        self._shards_done += 1
        self._images += record.shard.images
        self._proposals += record.shard.proposals
        self._reasons.update(row.reason for row in record.rejected)
        for stage, seconds in record.timing.items():
            if stage != "total":
                self._stages[stage] += seconds  # type: ignore[assignment]


def _shard_count(plan: Path, images: int) -> int:
    shards = read_parquet(plan, images, columns=["shard"]).column("shard")
    return int(shards[-1].as_py()) + 1 if len(shards) else 0


def _record_or_none(path: Path) -> CommitRecord | None:
    try:
        return read_record(path)
    except DeniedError:
        return None
    except UnansweredError:
        raise
    except AlignDetError:
        return None  # damaged, or removed meanwhile: the job mines it again


def _as_declared(status: JobStatus, manifest: Manifest) -> JobStatus:
    totals = manifest.totals
    return _replaced(
        status,
        state="finished",
        listed=False,
        shards_done=len(manifest.shards),
        images=totals.images,
        proposals=totals.proposals,
        rejected=totals.rejected,
    )


def _with_beat(status: JobStatus, beat: dict[str, Any] | None) -> JobStatus:
    if beat is None or age_of(beat) > SILENCE_SECONDS:
        return status
    if not beat.keys() >= _COUNTED:  # it has only begun
        return _replaced(status, state="running")
    images, rejected = int(beat["images"]), int(beat["rejected"])
    rate = float(beat["rate"]) or None
    left = status.planned - images - rejected
    return _replaced(
        status,
        state="running",
        images=images,
        proposals=int(beat["proposals"]),
        rejected=rejected,
        running=tuple(beat["running"]),
        failed=dict(beat["failed"]),
        rate=rate,
        eta=left / rate if rate else None,
    )


def _replaced(status: JobStatus, **values: Any) -> JobStatus:
    return JobStatus(**{**asdict(status), **values})
