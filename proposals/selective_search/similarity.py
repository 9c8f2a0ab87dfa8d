"""How alike two regions are: colour, fill, texture, size (Uijlings et al., section 3.2), in OpenCV's arithmetic.

Colour and texture: histogram intersection, summed bin by bin from the left in float32. Size and fill: one minus a
share of the image's pixels, clamped to [0, 1]; fill's is the part of the common bounding box that neither region
covers. A strategy is their weighted sum in this order, divided by the sum of the weights.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import Index, helper, kernel

COLOUR, FILL, TEXTURE, SIZE = range(4)
KINDS = 4


@helper
def intersect(
    histograms: npt.NDArray[np.float32],
    row: Index,
    others: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
) -> None:
    """Intersect one histogram with several. Four at a time: each sum is a chain of additions that cannot be split."""
    mine = histograms[row]
    last = len(others) - 1
    for start in range(0, len(others), 4):
        a = histograms[others[start]]
        b = histograms[others[min(start + 1, last)]]
        c = histograms[others[min(start + 2, last)]]
        d = histograms[others[min(start + 3, last)]]
        sum_a = sum_b = sum_c = sum_d = np.float32(0.0)
        for index in range(len(mine)):
            value = mine[index]
            sum_a += min(value, a[index])
            sum_b += min(value, b[index])
            sum_c += min(value, c[index])
            sum_d += min(value, d[index])
        for offset, total in enumerate((sum_a, sum_b, sum_c, sum_d)):
            if start + offset <= last:
                out[start + offset] = total


@helper
def _clamp(value: np.float32) -> np.float32:
    return max(min(value, np.float32(1.0)), np.float32(0.0))


@helper
def size_similarity(size_a: np.int32, size_b: np.int32, pixels: np.float32) -> np.float32:
    """High when both are small, so that the small ones merge first."""
    return _clamp(np.float32(1.0) - np.float32(size_a + size_b) / pixels)


@helper
def fill_similarity(
    box_a: npt.NDArray[np.int32],
    box_b: npt.NDArray[np.int32],
    size_a: np.int32,
    size_b: np.int32,
    pixels: np.float32,
) -> np.float32:
    """High when the two fill their common box. Boxes: xyxy half-open."""
    width = max(box_a[2], box_b[2]) - min(box_a[0], box_b[0])
    height = max(box_a[3], box_b[3]) - min(box_a[1], box_b[1])
    return _clamp(np.float32(1.0) - np.float32(width * height - size_a - size_b) / pixels)


@helper
def combine(parts: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> np.float32:
    """The strategy's weighted mean. A weight of zero adds an exact zero, so one sum serves every strategy."""
    total = np.float32(0.0)
    weight = np.float32(0.0)
    for kind in range(KINDS):
        total += weights[kind] * parts[kind]
        weight += weights[kind]
    return total / weight


@kernel(
    "void(uint64[::1], float32[:,::1], float32[:,::1], int32[::1], int32[:,::1], float32, float32[:,::1])"
)
def compare_neighbours(
    pairs: npt.NDArray[np.uint64],
    colour: npt.NDArray[np.float32],
    texture: npt.NDArray[np.float32],
    size: npt.NDArray[np.int32],
    box: npt.NDArray[np.int32],
    pixels: np.float32,
    parts: npt.NDArray[np.float32],
) -> None:
    """The four similarities of every pair of initial regions, shared by the strategies.

    pairs: [P], i << 32 | j, grouped by i. parts: [P, 4], out.
    """
    most = len(pairs)
    others = np.empty(most, np.int64)
    found = np.empty(most, np.float32)
    start = 0
    while start < most:
        first = np.int64(pairs[start] >> np.uint64(32))
        stop = start
        while stop < most and np.int64(pairs[stop] >> np.uint64(32)) == first:
            others[stop - start] = np.int64(pairs[stop] & np.uint64(0xFFFFFFFF))
            stop += 1
        near = others[: stop - start]
        intersect(colour, first, near, found)
        parts[start:stop, COLOUR] = found[: stop - start]
        intersect(texture, first, near, found)
        parts[start:stop, TEXTURE] = found[: stop - start]
        for index in range(start, stop):
            other = near[index - start]
            parts[index, SIZE] = size_similarity(size[first], size[other], pixels)
            parts[index, FILL] = fill_similarity(box[first], box[other], size[first], size[other], pixels)
        start = stop
