"""What proposals find, and what they cost: against image size, and against the order of boxes.

    python benchmarks/proposal_recall.py cost
    python benchmarks/proposal_recall.py size --truth annotations.json --images folder/
    python benchmarks/proposal_recall.py rank --truth annotations.json --images folder/ --half odd

`cost`: seconds and boxes of photographs that ship with scikit-image and scikit-learn, at many long sides (the larger
ones are enlarged, which costs what a sharp picture of that size costs to within its number of regions).
`size`: recall of a labelled set mined at several long sides. `rank`: recall among the first k in several orders; a
half is the images whose digits make an even or an odd number.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from selective_search import photographs

from proposals.boxes import Boxes, areas, clip, pairwise_iou, scale
from proposals.filter_spec import FilterSpec
from proposals.filters import apply_filter
from proposals.ground_truth import GroundTruth, read_ground_truth
from proposals.images import Bgr, decode_bgr, resize_max_side
from proposals.nms import nms
from proposals.quality import ALL, measure_boxes
from proposals.ranking import order
from proposals.selective_search import Mode, propose

FILTER = FilterSpec.parse("ratio3size0008@0.5")
COST_SIDES = (128, 192, 256, 384, 512, 640, 800, 1024, 1333)
RECALL_SIDES = (128, 192, 256, 320, 384, 448, 512, 576, 640)
KS = (10, 50, 100, 300, ALL)
HALVES = {"even": 0, "odd": 1}


def cost(mode: Mode, rounds: int) -> None:
    """Print median seconds, seconds per megapixel and boxes by long side."""
    print("| long side | s/image | s/Mpx | boxes |\n|---|---|---|---|")
    for side in COST_SIDES:
        times, pixels, boxes = [], [], []
        for image in photographs().values():
            factor = side / max(image.shape[:2])
            shape = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
            small = np.asarray(cv2.resize(image, shape, interpolation=cv2.INTER_AREA), np.uint8)
            boxes.append(len(propose(small, mode)))
            for turn in range(rounds):
                start = time.thread_time()
                propose(small, mode, turn)
                times.append(time.thread_time() - start)
                pixels.append(shape[0] * shape[1])
        print(
            f"| {side} | {statistics.median(times):.4f} | {1e6 * sum(times) / sum(pixels):.3f} | "
            f"{statistics.median(boxes):.0f} |",
            flush=True,
        )


def select(truth: GroundTruth, half: str | None) -> GroundTruth:
    """The ground truth of every image, or of one half."""
    digits = [int("".join(filter(str.isdigit, Path(name).stem)) or 0) for name in truth.names]
    keep = [i for i, number in enumerate(digits) if half is None or number % 2 == HALVES[half]]
    rows = np.concatenate([np.arange(truth.offsets[i], truth.offsets[i + 1]) for i in keep]).astype(np.int64)
    counts = [0, *(int(truth.offsets[i + 1] - truth.offsets[i]) for i in keep)]
    return replace(
        truth,
        names=[truth.names[i] for i in keep],
        sizes=truth.sizes[keep],
        offsets=np.cumsum(counts).astype(np.int64),
        boxes=truth.boxes[rows],
        area=truth.area[rows],
        ignore=truth.ignore[rows],
        crowd=truth.crowd[rows],
        labels=truth.labels[rows],
    )


def search(bgr: Bgr, side: int, mode: Mode) -> Boxes:
    """Raw proposals at this long side, in pixels of the original, in OpenCV's order."""
    small, scale_x, scale_y = resize_max_side(bgr, side)
    return scale(propose(small, mode).boxes, scale_x, scale_y)


def by_size(truth: GroundTruth, images: list[Bgr], mode: Mode) -> None:
    """Print recall by long side, raw and filtered."""
    print("| long side | s/image | boxes | recall@0.5 | AR@1000 | ABO | ", end="")
    print("filtered boxes | recall@0.5 | AR@100 | AR@all |\n" + "|---" * 10 + "|")
    for side in RECALL_SIDES:
        start = time.thread_time()
        raw = [search(bgr, side, mode) for bgr in images]
        seconds = (time.thread_time() - start) / len(images)
        kept = [
            apply_filter(
                boxes, np.arange(len(boxes), dtype=np.float32), *size(bgr), FILTER, "agreement"
            ).boxes
            for boxes, bgr in zip(raw, images, strict=True)
        ]
        before, after = measure_boxes(raw, truth), measure_boxes(kept, truth)
        print(
            f"| {side} | {seconds:.3f} | {before.proposals / len(images):.0f} | {before.recall[0, -1]:.3f} | "
            f"{before.average_recall[1000]:.3f} | {np.mean([*before.abo.values()]):.3f} | "
            f"{after.proposals / len(images):.0f} | {after.recall[0, -1]:.3f} | "
            f"{after.average_recall[100]:.3f} | {after.average_recall[ALL]:.3f} |",
            flush=True,
        )


def size(bgr: Bgr) -> tuple[int, int]:
    """(width, height)."""
    return bgr.shape[1], bgr.shape[0]


def _by(score: Callable[[Boxes], npt.NDArray[np.float64]]) -> Callable[[Boxes, int, int], Boxes]:
    return lambda boxes, width, height: boxes[np.argsort(-score(boxes), kind="stable")]


ORDERS: dict[str, Callable[[Boxes, int, int], Boxes]] = {
    "opencv": lambda boxes, width, height: boxes,
    "larger first": _by(areas),
    "count of IoU >= 0.7": _by(lambda boxes: (pairwise_iou(boxes, boxes) >= 0.7).sum(1).astype(np.float64)),
    "agreement": lambda boxes, width, height: order(
        boxes, np.zeros(len(boxes), np.float32), "agreement", width, height
    )[0],
}


def by_rank(truth: GroundTruth, images: list[Bgr], side: int, mode: Mode) -> None:
    """Print recall among the first k by order of boxes, and what the ordering costs."""
    shaped, searching = [], 0.0
    for bgr in images:
        start = time.thread_time()
        found = clip(search(bgr, side, mode), *size(bgr))
        searching += time.thread_time() - start
        unsuppressed = replace(FILTER, nms_iou=None)
        rank = np.arange(len(found), dtype=np.float32)
        shaped.append(apply_filter(found, rank, *size(bgr), unsuppressed, "opencv").boxes)
    print(f"{len(images)} images, {len(truth.boxes)} boxes, {mode}, {side} px")
    print(
        "| order | "
        + " | ".join(f"AR@{'all' if k == ALL else k}" for k in (10, 50, 100, 300, ALL))
        + " | time |"
    )
    print("|---" * 7 + "|")
    for name, ordered in ORDERS.items():
        kept, spent = [], 0.0
        for boxes, bgr in zip(shaped, images, strict=True):
            start = time.thread_time()
            best_first = ordered(boxes, *size(bgr))
            spent += time.thread_time() - start
            kept.append(best_first[nms(best_first, 0.5)])
        recall = recall_at(kept, truth)
        print(
            f"| {name} | " + " | ".join(f"{recall[k]:.4f}" for k in KS) + f" | +{spent / searching:.1%} |",
            flush=True,
        )


def recall_at(kept: list[Boxes], truth: GroundTruth) -> dict[int, float]:
    """AR@k of the first k boxes, for every k of KS."""
    return measure_boxes(kept, truth).average_recall


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cost", "size", "rank"])
    parser.add_argument("--mode", default="fast", choices=["single", "fast", "quality"])
    parser.add_argument("--side", type=int, default=512, help="long side for `rank`")
    parser.add_argument("--rounds", type=int, default=3, help="of `cost`")
    parser.add_argument("--truth", type=Path, help="COCO json, or a folder of VOC xml")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--half", choices=sorted(HALVES))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.what == "cost":
        cost(options.mode, options.rounds)
        return
    if options.truth is None or options.images is None:
        parser.error(f"{options.what} needs --truth and --images")
    truth = select(read_ground_truth(options.truth), options.half)
    images = [decode_bgr((options.images / name).read_bytes()).bgr for name in truth.names]
    if options.what == "size":
        by_size(truth, images, options.mode)
    else:
        by_rank(truth, images, options.side, options.mode)


if __name__ == "__main__":
    main()
