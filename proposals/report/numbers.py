"""The figures of a dataset: totals from its manifest, distributions from an even sample of its shards."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, JsonValue

from proposals.boxes import Boxes
from proposals.dataset import ProposalDataset, layout
from proposals.dataset.assemble import read_rejected
from proposals.dataset.manifest import CommitRecord, read_record
from proposals.errors import AlignDetError
from proposals.paths import name_of
from proposals.rows import Rows, iterate_rows

SAMPLE_IMAGES = 20_000
SAMPLE_BOXES = 4_000_000
SAMPLE_RECORDS = 2_000
PERCENTILES = (5, 25, 50, 75, 95)


class Histogram(BaseModel):
    """``counts[i]`` values lie in [edges[i], edges[i + 1]); the outermost bins also hold what lies beyond."""

    model_config = ConfigDict(frozen=True)

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Cost(BaseModel):
    """Core-seconds per image. percentiles: over shards, weighted by their images; stages: means."""

    model_config = ConfigDict(frozen=True)

    shards: int
    mean: float
    percentiles: dict[str, float]
    stages: dict[str, float]


class Statistics(BaseModel):
    """All figures of a dataset. Totals are exact; percentiles and histograms are over ``sampled_images``.

    size: sqrt(box area / image area). aspect: width / height. rejected: images by ``stage: reason``.
    cost: None when no commit record is left.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    format_version: str
    images: int
    proposals: int
    rejected_images: int
    bytes: int
    shards: int
    source: dict[str, JsonValue]
    recipe: dict[str, JsonValue]
    recipe_fingerprint: str
    versions: dict[str, str]
    statuses: dict[str, int]
    rejected: dict[str, int]
    cost: Cost | None
    sampled_images: int
    boxes_per_image: dict[str, float]
    relative_size: dict[str, float]
    aspect: dict[str, float]
    histograms: dict[str, Histogram]


@dataclass(frozen=True)
class _Sample:
    counts: npt.NDArray[np.int64]
    size: npt.NDArray[np.float32]
    aspect: npt.NDArray[np.float32]
    rank: npt.NDArray[np.float32]


def collect(dataset: ProposalDataset) -> Statistics:
    """The figures of ``dataset``; reads at most about 20,000 images' boxes and 2,000 commit records.

    Raises AlignDetError when a file that it reads is damaged.
    """
    manifest, sample = dataset.manifest, _read_sample(dataset)
    totals = manifest.totals
    return Statistics(
        name=name_of(dataset.root),
        format_version=manifest.format_version,
        images=totals.images,
        proposals=totals.proposals,
        rejected_images=totals.rejected,
        bytes=totals.bytes,
        shards=len(manifest.shards),
        source=manifest.source.model_dump(),
        recipe=manifest.recipe.model_dump(),
        recipe_fingerprint=manifest.recipe_fingerprint,
        versions=manifest.versions,
        statuses={str(name): count for name, count in totals.statuses.items()},
        rejected=_rejections(dataset),
        cost=_cost(dataset.root, [shard.name for shard in manifest.shards]),
        sampled_images=len(sample.counts),
        boxes_per_image=_percentiles(sample.counts),
        relative_size=_percentiles(sample.size),
        aspect=_percentiles(sample.aspect),
        histograms=_histograms(sample),
    )


def spread(total: int, wanted: int) -> list[int]:
    """At most ``wanted`` different positions below ``total``, evenly spaced, first and last included."""
    if total <= 0:
        return []
    return sorted({int(i) for i in np.linspace(0, total - 1, max(1, min(wanted, total))).round()})


def _read_sample(dataset: ProposalDataset) -> _Sample:
    shards, images = len(dataset.shard_names), max(len(dataset), 1)
    boxes = dataset.manifest.totals.proposals / images
    affordable = min(SAMPLE_IMAGES, int(SAMPLE_BOXES / max(boxes, 1)))
    chosen = spread(shards, int(affordable * shards / images))
    parts = [_measure(rows) for rows in iterate_rows(dataset, chosen)]
    columns = zip(*parts, strict=True) if parts else ((np.zeros(0, np.float32),) for _ in range(4))
    counts, size, aspect, rank = (np.concatenate(list(column)) for column in columns)
    return _Sample(counts.astype(np.int64), size, aspect, rank)


def _measure(rows: Rows) -> tuple[npt.NDArray[np.int64], Boxes, Boxes, Boxes]:
    counts = np.diff(rows.offsets)
    sides = np.maximum(rows.boxes[:, 2:] - rows.boxes[:, :2], np.float32(1e-6))
    image = np.repeat(np.sqrt(rows.sizes.prod(axis=1).astype(np.float32)), counts)
    return counts, np.sqrt(sides.prod(axis=1)) / image, sides[:, 0] / sides[:, 1], rows.rank


def _histograms(sample: _Sample) -> dict[str, Histogram]:
    rank, counts = sample.rank, sample.counts
    return {
        "boxes_per_image": _histogram(counts, _round_edges(counts)),
        "relative_size": _histogram(sample.size, np.linspace(0, 1, 21)),
        "aspect": _histogram(sample.aspect, 2.0 ** np.linspace(-3, 3, 25)),
        "rank": _histogram(rank, _rank_edges(rank)),
    }


def _round_edges(values: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    # About twenty bins that start at zero and end past the 99th percentile, on steps of 1, 2 or 5.
    top = float(np.percentile(values, 99)) if len(values) else 1.0
    step = max(top, 1e-3) / 20
    scale = 10.0 ** np.floor(np.log10(step))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= step * 0.999)
    return np.arange(int(np.ceil(top / step)) + 1 or 2) * step if top > step else np.array([0.0, step])


def _rank_edges(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # Imported ranks are negated scores: none of their bins need start at zero.
    if not len(values) or values.min() >= 0:
        return _round_edges(values)
    low, high = np.percentile(values, (1, 99)).astype(np.float64).tolist()
    return np.linspace(low, high if high > low else low + max(1e-3, abs(low) * 1e-6), 21)


def _histogram(
    values: npt.NDArray[np.float32] | npt.NDArray[np.int64], edges: npt.NDArray[np.float64]
) -> Histogram:
    inside = np.clip(values, edges[0], edges[-1])
    counts, _ = np.histogram(inside, edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _percentiles(values: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.percentile(values.astype(np.float64), PERCENTILES)
    named = {f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)}
    return {"mean": float(values.mean(dtype=np.float64)), **named}


def _rejections(dataset: ProposalDataset) -> dict[str, int]:
    names = ["stage", "reason"]
    rejected = read_rejected(dataset.root, dataset.manifest, names)
    counted = rejected.group_by(names, use_threads=False).aggregate([([], "count_all")])
    columns = (counted.column(name).to_pylist() for name in (*names, "count_all"))
    found = {f"{stage}: {reason}": count for stage, reason, count in zip(*columns, strict=True)}
    return dict(Counter(found).most_common())


def _cost(root: Path, names: list[str]) -> Cost | None:
    records = [_record(root, names[i]) for i in spread(len(names), SAMPLE_RECORDS)]
    timed = [
        (record.shard.images + len(record.rejected), record.timing)
        for record in records
        if record is not None and "total" in record.timing
    ]
    timed = [(images, timing) for images, timing in timed if images]
    if not timed:
        return None
    weights = np.array([images for images, _ in timed], dtype=np.float64)
    each = np.array([timing["total"] / images for images, timing in timed])
    stages: Counter[str] = Counter()
    for _, timing in timed:
        stages.update(timing)
    total = stages.pop("total")
    return Cost(
        shards=len(timed),
        mean=float(total / weights.sum()),
        percentiles=_weighted_percentiles(each, weights),
        stages={name: float(seconds / weights.sum()) for name, seconds in stages.most_common()},
    )


def _record(root: Path, name: str) -> CommitRecord | None:
    # Only the cost is read from it, and a dataset stays a dataset without its commit records.
    try:
        return read_record(layout.record_path(root, name))
    except AlignDetError:
        return None


def _weighted_percentiles(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> dict[str, float]:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    places = np.minimum(np.searchsorted(reached, np.array(PERCENTILES) / 100), len(values) - 1)
    return {f"p{p}": float(v) for p, v in zip(PERCENTILES, values[order][places], strict=True)}
