"""Milliseconds of RoIAlign and of its gradient on a CPU: ours (aligndet_train/ops/roi_kernel.py) and torchvision's.

    python -m benchmarks.roi_align

Random boxes on random features, 7 x 7 bins; both in turn, --rounds times, the median of each. Before timing, results
are compared.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aligndet_train.ops import roi_kernel
from aligndet_train.ops._kernels import kernels

BINS = (7, 7)


class Case(NamedTuple):
    """Features [images, channels, side, side] of pictures of ``pixels``; boxes with sides of ``least`` to ``most``."""

    name: str
    images: int
    channels: int
    side: int
    pixels: int
    boxes: int
    least: int
    most: int
    ratio: int


CASES = (
    Case("pretraining at 224 px", 16, 128, 28, 224, 2800, 8, 80, 2),
    Case("fine-tuning at 160 px", 16, 128, 20, 160, 1000, 8, 80, 2),
    Case("stock, stride 4", 2, 256, 200, 800, 1024, 16, 112, 0),
    Case("half of the map and more", 2, 256, 100, 800, 128, 400, 800, 2),
    Case("stock, stride 8", 2, 256, 100, 800, 1024, 32, 256, 0),
)


def boxes_of(case: Case) -> Tensor:
    """Rows (image, xyxy), in pixels, images one after the other."""
    centres = torch.rand(case.boxes, 2) * case.pixels
    halves = (torch.rand(case.boxes, 2) * (case.most - case.least) + case.least) / 2
    images = torch.arange(case.boxes)[:, None] * case.images // case.boxes
    return torch.cat([images.float(), centres - halves, centres + halves], dim=1)


def in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - began)
    return {name: 1000 * median(each) for name, each in taken.items()}


def compare(case: Case, rounds: int) -> None:
    """Print a row for each direction. Raises AssertionError when results differ by more than rounding."""
    scale = case.side / case.pixels
    features, rois = torch.rand(case.images, case.channels, case.side, case.side), boxes_of(case)
    gradient = torch.rand(case.boxes, case.channels, *BINS)
    grid = roi_kernel.Grid(*BINS, scale, case.ratio, True)
    directions: dict[str, dict[str, Callable[[], Tensor]]] = {
        "forward": {
            "ours": lambda: roi_kernel.align(features, rois, grid),
            "torchvision": lambda: kernels.roi_align(features, rois, scale, *BINS, case.ratio, True),
        },
        "backward": {
            "ours": lambda: roi_kernel.align_gradient(gradient, rois, features.shape, grid),
            "torchvision": lambda: kernels._roi_align_backward(
                gradient, rois, scale, *BINS, *features.shape, case.ratio, True
            ),
        },
    }
    for direction, both in directions.items():
        torch.testing.assert_close(both["ours"](), both["torchvision"](), rtol=1e-3, atol=1e-3)
        taken = in_turn(both, rounds)
        ratio = taken["torchvision"] / taken["ours"]
        print(
            f"| {case.name} | {direction} | {taken['torchvision']:.0f} | {taken['ours']:.0f} | {ratio:.1f} |",
            flush=True,
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{arguments.threads} threads\n| | | torchvision, ms | ours, ms | ratio |\n|---|---|---|---|---|")
    for case in CASES:
        compare(case, arguments.rounds)


if __name__ == "__main__":
    main()
