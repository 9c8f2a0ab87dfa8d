"""How well proposals cover ground-truth boxes: recall, AR@k, ABO; pycocotools' numbers with useCats = 0."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from proposals.boxes import Boxes
from proposals.dataset import ProposalDataset
from proposals.dataset.tables import SCHEMA
from proposals.errors import AlignDetError
from proposals.ground_truth import GroundTruth
from proposals.rows import Rows, iterate_rows
from proposals.selective_search.jit import kernel

IOUS = tuple(float(iou) for iou in np.linspace(0.5, 0.95, 10))
ALL = 2**31 - 1
KS = (1, 10, 30, 50, 100, 300, 1000, ALL)
AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
AREA_K = 1000

_UNMATCHED = ALL


@dataclass(frozen=True)
class Pairing:
    """Which image of a dataset is which of the ground truth.

    truth: [N] int64, for every image of the dataset its place in the ground truth, or -1.
    only_truth, only_dataset, resized: names left out, because the other side lacks them (or has several of that
    name), or because the two sides give the picture another size. uncompared: names of paired images left out
    because another dataset of the same comparison has no pair for them.
    """

    truth: npt.NDArray[np.int64]
    only_truth: list[str]
    only_dataset: list[str]
    resized: list[str]
    uncompared: list[str] = field(default_factory=list)

    @property
    def paired(self) -> int:
        """How many images both sides have."""
        return int((self.truth >= 0).sum())


@dataclass(frozen=True)
class Quality:
    """Recall over the images that both sides have.

    images, truths, proposals: how many. recall: [len(IOUS), len(KS)] float64, the share of ground-truth boxes that
    the best k proposals of each image find, one proposal for one box; nan without a box. area_recall: AR at 1000
    proposals by COCO's ranges of annotated area. abo: best overlap, averaged over the boxes of each class.
    """

    images: int
    truths: int
    proposals: int
    recall: npt.NDArray[np.float64]
    area_recall: dict[str, float]
    abo: dict[str, float]

    @property
    def average_recall(self) -> dict[int, float]:
        """AR@k: recall averaged over IoU 0.50, 0.55 .. 0.95, by k (`ALL`: every proposal)."""
        return dict(zip(KS, self.recall.mean(axis=0).tolist(), strict=True))

    @property
    def mabo(self) -> float:
        """Mean of ``abo`` over classes; nan when there is none."""
        return float(np.mean(list(self.abo.values()))) if self.abo else float("nan")


def pair_images(uris: list[str], sizes: npt.NDArray[np.int64], truth: GroundTruth) -> Pairing:
    """Pair by whole name, else by file name where that is unique on both sides.

    uris: [N] names in the dataset; sizes: [N, 2] (width, height) px.
    """
    names = [PurePosixPath(name).as_posix() for name in truth.names]
    found = _by_name(uris, names)
    paired = np.flatnonzero(found >= 0)
    wanted = truth.sizes[found[paired]]
    other = (wanted > 0).all(axis=1) & (wanted != sizes[paired]).any(axis=1)
    resized = paired[other]
    missing = np.setdiff1d(np.arange(len(names)), found)
    pairing = Pairing(
        truth=found,
        only_truth=[truth.names[i] for i in missing],
        only_dataset=[uris[i] for i in np.flatnonzero(found < 0)],
        resized=[uris[i] for i in resized],
    )
    found[resized] = -1
    return pairing


def measure(rows: Iterable[Rows], truth: GroundTruth, pairing: Pairing) -> Quality:
    """Score the paired images. rows: all images of the dataset, in the order that ``pairing`` was made in."""
    groups = {"all": ~truth.ignore} | {
        # Ignored boxes only ever take proposals that no other box wants, so leaving them out changes no recall.
        name: ~truth.ignore & (truth.area >= low) & (truth.area <= high)
        for name, (low, high) in AREAS.items()
    }
    ranks = {name: np.full((len(IOUS), len(truth.area)), _UNMATCHED, np.int32) for name in groups}
    best, start, proposals = np.zeros(len(truth.area)), 0, 0
    for batch in rows:
        places = pairing.truth[start : start + len(batch)]
        start += len(batch)
        proposals += int(np.diff(batch.offsets)[places >= 0].sum())
        for name, wanted in groups.items():
            _match(batch, places, truth, wanted, ranks[name], best if name == "all" else None)
    seen = np.zeros(len(truth.names), np.bool_)
    seen[pairing.truth[pairing.truth >= 0]] = True
    counted = {name: np.repeat(seen, np.diff(truth.offsets)) & wanted for name, wanted in groups.items()}
    recall = _recall(ranks["all"][:, counted["all"]], KS)
    area_recall = {name: float(_recall(ranks[name][:, counted[name]], (AREA_K,)).mean()) for name in AREAS}
    abo = _best_overlap_by_class(best, counted["all"], truth)
    return Quality(int(seen.sum()), int(counted["all"].sum()), proposals, recall, area_recall, abo)


def measure_dataset(dataset: ProposalDataset, truth: GroundTruth) -> tuple[Quality, Pairing]:
    """Pair the images of ``dataset`` with the ground truth and score them, shard by shard.

    Raises AlignDetError when not one image is on both sides, giving a name of each.
    """
    return measure_datasets([dataset], truth)[0]


def measure_datasets(
    datasets: Sequence[ProposalDataset], truth: GroundTruth
) -> list[tuple[Quality, Pairing]]:
    """`measure_dataset` for each, over one set of images: those of the ground truth that every dataset has.

    Raises AlignDetError when a dataset shares no image with the ground truth, or all of them together share none.
    """
    pairings = [_pair(dataset, truth) for dataset in datasets]
    common = reduce(np.intersect1d, (pairing.truth for pairing in pairings))
    common = common[common >= 0]
    if not len(common):
        raise AlignDetError(
            f"no image of the ground truth is in both {' and '.join(str(dataset.root) for dataset in datasets)}: "
            "nothing can be compared. Name datasets of the same images."
        )
    shared = [_only(pairing, common, truth) for pairing in pairings]
    return [
        (measure(iterate_rows(dataset), truth, pairing), pairing)
        for dataset, pairing in zip(datasets, shared, strict=True)
    ]


def _pair(dataset: ProposalDataset, truth: GroundTruth) -> Pairing:
    table = _names_and_sizes(dataset)
    uris = table.column("uri").to_pylist()
    sizes = np.stack([table.column(name).to_numpy() for name in ("width", "height")], axis=1)
    pairing = pair_images(uris, sizes.astype(np.int64), truth)
    if not pairing.paired:
        raise AlignDetError(_nothing_paired(dataset, uris, truth, pairing))
    return pairing


def _names_and_sizes(dataset: ProposalDataset) -> pa.Table:
    fields = [SCHEMA.field(name) for name in ("uri", "width", "height")]
    names = [field.name for field in fields]
    try:
        table = dataset.table(names).select(names)
        table.validate(full=True)
        if not table.schema.equals(pa.schema(fields)):
            raise ValueError(f"columns {', '.join(names)} are not as the format says")
    except (KeyError, ValueError, pa.ArrowException) as error:
        for _ in iterate_rows(dataset):
            pass  # reads all columns, so it names the damaged table and its fault
        raise AlignDetError(f"{dataset.root} is damaged: {error}. See `aligndet verify`.") from error
    return table


def _only(pairing: Pairing, common: npt.NDArray[np.int64], truth: GroundTruth) -> Pairing:
    """``pairing`` with the images at the places ``common`` of the ground truth, and no others."""
    kept = np.isin(pairing.truth, common)
    dropped = pairing.truth[(pairing.truth >= 0) & ~kept]
    return replace(
        pairing, truth=np.where(kept, pairing.truth, -1), uncompared=[truth.names[i] for i in dropped]
    )


def measure_boxes(boxes: Iterable[Boxes], truth: GroundTruth) -> Quality:
    """Score arrays without a dataset: item i is image i of ``truth``, [N, 4] float32 xyxy px, best first.

    Raises ValueError when there are not as many arrays as images.
    """
    arrays = list(boxes)
    if len(arrays) != len(truth.names):
        raise ValueError(f"{len(arrays)} box arrays for {len(truth.names)} images")
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)
    flat = np.concatenate([np.zeros((0, 4), np.float32), *arrays])
    ranks, unknown = np.zeros(len(flat), np.float32), pa.chunked_array([pa.nulls(len(arrays), pa.string())])
    rows = Rows(truth.names, ["ok"] * len(arrays), truth.sizes, offsets, flat, ranks, unknown)
    return measure([rows], truth, Pairing(np.arange(len(arrays)), [], [], []))


def _by_name(uris: list[str], names: list[str]) -> npt.NDArray[np.int64]:
    whole = {name: i for i, name in enumerate(names)}
    found = np.array([whole.get(uri, -1) for uri in uris], dtype=np.int64).reshape(-1)
    taken = set(found.tolist())
    bases = [PurePosixPath(name).name for name in names]
    free = Counter(base for i, base in enumerate(bases) if i not in taken)
    place = {base: i for i, base in enumerate(bases) if i not in taken and free[base] == 1}
    rest = {int(i): PurePosixPath(uris[i]).name for i in np.flatnonzero(found < 0)}
    asked = Counter(rest.values())
    for i, base in rest.items():
        if asked[base] == 1:
            found[i] = place.get(base, -1)
    return found


def _nothing_paired(dataset: ProposalDataset, uris: list[str], truth: GroundTruth, pairing: Pairing) -> str:
    if pairing.resized:
        return (
            f"all {len(pairing.resized)} images that {dataset.root} shares with the ground truth have another size "
            "there. Mine the original pictures, or scale the annotations."
        )
    ours, theirs = next(iter(uris), "nothing"), next(iter(truth.names), "nothing")
    return (
        f"no image of {dataset.root} is in the ground truth: {ours!r} here, {theirs!r} there. "
        "Images are paired by path, then by file name. Name the annotations of these pictures."
    )


def _match(
    batch: Rows,
    places: npt.NDArray[np.int64],
    truth: GroundTruth,
    wanted: npt.NDArray[np.bool_],
    ranks: npt.NDArray[np.int32],
    best: npt.NDArray[np.float64] | None,
) -> None:
    images = np.flatnonzero(places >= 0)
    spans = [np.arange(truth.offsets[p], truth.offsets[p + 1]) for p in places[images]]
    spans = [span[wanted[span]] for span in spans]
    counts = np.array([len(span) for span in spans], dtype=np.int64)
    indices = np.concatenate([np.zeros(0, np.int64), *spans])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    found_ranks, found_best = _greedy(
        batch.boxes.astype(np.float64),
        batch.offsets,
        images,
        np.ascontiguousarray(truth.boxes[indices]),
        starts,
        np.minimum(np.array(IOUS), 1 - 1e-10),
    )
    ranks[:, indices] = found_ranks
    if best is not None:
        best[indices] = found_best


def _recall(ranks: npt.NDArray[np.int32], ks: tuple[int, ...]) -> npt.NDArray[np.float64]:
    if not ranks.shape[1]:
        return np.full((len(IOUS), len(ks)), np.nan)
    return np.stack([(ranks < k).mean(axis=1) for k in ks], axis=1)


def _best_overlap_by_class(
    best: npt.NDArray[np.float64], counted: npt.NDArray[np.bool_], truth: GroundTruth
) -> dict[str, float]:
    labels = truth.labels[counted]
    sums = np.bincount(labels, best[counted], len(truth.classes))
    counts = np.bincount(labels, minlength=len(truth.classes))
    return {truth.classes[i]: float(sums[i] / counts[i]) for i in np.flatnonzero(counts)}


@kernel(
    "Tuple((int32[:, ::1], float64[::1]))"
    "(float64[:, ::1], int64[::1], int64[::1], float64[:, ::1], int64[::1], float64[::1])"
)
def _greedy(
    boxes: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.int64],
    images: npt.NDArray[np.int64],
    truths: npt.NDArray[np.float64],
    starts: npt.NDArray[np.int64],
    ious: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    # Proposals choose in turn, best first: each takes the free box it overlaps most, if by enough. So what the
    # first k found never depends on the others, and one pass answers every k.
    total = truths.shape[0]
    ranks = np.full((ious.shape[0], total), _UNMATCHED, dtype=np.int32)
    best = np.zeros(total)
    overlap = np.empty(total)
    for n in range(images.shape[0]):
        first, last = starts[n], starts[n + 1]
        begin = offsets[images[n]]
        for d in range(begin, offsets[images[n] + 1]):
            largest = 0.0
            width, height = boxes[d, 2] - boxes[d, 0], boxes[d, 3] - boxes[d, 1]
            for g in range(first, last):
                x, y, w, h = truths[g]
                across = min(boxes[d, 0] + width, x + w) - max(boxes[d, 0], x)
                down = min(boxes[d, 1] + height, y + h) - max(boxes[d, 1], y)
                overlap[g] = 0.0
                if across > 0 and down > 0:
                    inter = across * down
                    overlap[g] = inter / (width * height + w * h - inter)
                best[g] = max(best[g], overlap[g])
                largest = max(largest, overlap[g])
            for t in range(ious.shape[0]):
                if largest < ious[t]:
                    break
                chosen, chosen_overlap = -1, ious[t]
                for g in range(first, last):
                    if ranks[t, g] == _UNMATCHED and overlap[g] >= chosen_overlap:
                        chosen, chosen_overlap = g, overlap[g]
                if chosen >= 0:
                    ranks[t, chosen] = d - begin
    return ranks, best
