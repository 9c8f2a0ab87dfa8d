"""The pixel graph's edges and their order: one sort per plane set, whatever the number of segmentations.

Every pixel p owns two undirected edges, numbered 2p (to its right) and 2p + 1 (downwards); the number alone gives
both ends. OpenCV lists each edge twice, once from either end, and sorts that list again for every k. A component only
ever asks whether an edge is heavier than a threshold, so half the edges in any order among equals give the same
components; the one place where equals matter (`edge_ties`) rebuilds OpenCV's list.

The weight of an edge is the Euclidean distance of the two blurred colours, accumulated in float32. Non-negative
floats order like their bits, hence the radix sort.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import helper, kernel

NO_EDGE = np.float32(np.inf)  # where a pixel of the last column or row would point outside: sorts last
DIGIT_BITS = 11
DIGITS = 3
_BUCKETS = 1 << DIGIT_BITS
_MASK = np.uint32(_BUCKETS - 1)


def edge_count(height: int, width: int) -> int:
    """How many undirected 4-neighbour edges an image has."""
    return height * (width - 1) + (height - 1) * width


@helper
def _distance(blurred: npt.NDArray[np.float32], y: int, x: int, y2: int, x2: int) -> np.float32:
    total = np.float32(0.0)
    for channel in range(blurred.shape[2]):
        difference = blurred[y, x, channel] - blurred[y2, x2, channel]
        total += difference * difference
    return np.float32(np.sqrt(total))


@kernel("void(float32[:,:,::1], float32[::1])")
def weigh_edges(blurred: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> None:
    """blurred: [H, W, C] float32. weight: [2 H W] float32, filled by edge number."""
    height, width = blurred.shape[0], blurred.shape[1]
    for y in range(height):
        row = weight[2 * y * width : 2 * (y + 1) * width]
        for x in range(width - 1):
            row[2 * x] = _distance(blurred, y, x, y, x + 1)
        row[2 * (width - 1)] = NO_EDGE
        if y + 1 < height:
            for x in range(width):
                row[2 * x + 1] = _distance(blurred, y, x, y + 1, x)
        else:
            row[1::2] = NO_EDGE


@helper
def _offsets(count: npt.NDArray[np.int64]) -> None:
    for digit in range(DIGITS):
        start = 0
        for bucket in range(_BUCKETS):
            held = count[digit, bucket]
            count[digit, bucket] = start
            start += held


@helper
def _move(
    source: npt.NDArray[np.uint64],
    target: npt.NDArray[np.uint64],
    next_slot: npt.NDArray[np.int64],
    shift: int,
) -> None:
    for item in source:
        bucket = np.uint32(item >> np.uint64(shift)) & _MASK
        slot = next_slot[bucket]
        next_slot[bucket] = slot + 1
        target[np.uint64(slot)] = item


@kernel("void(uint32[::1], uint64[::1], uint64[::1], int64[:,::1])")
def sort_edges(
    bits: npt.NDArray[np.uint32],
    ordered: npt.NDArray[np.uint64],
    scratch: npt.NDArray[np.uint64],
    count: npt.NDArray[np.int64],
) -> None:
    """Least significant digit first. bits: [2 H W], the weights' bits by edge number.

    ordered: [2 H W], out, bits << 32 | edge number, ascending. scratch: the same size. count: [DIGITS, 2048].
    """
    count[:] = 0
    for value in bits:
        count[0, value & _MASK] += 1
        count[1, (value >> np.uint32(DIGIT_BITS)) & _MASK] += 1
        count[2, value >> np.uint32(2 * DIGIT_BITS)] += 1
    _offsets(count)
    first = count[0]
    for edge in range(len(bits)):
        value = bits[edge]
        slot = first[value & _MASK]
        first[value & _MASK] = slot + 1
        ordered[np.uint64(slot)] = (np.uint64(value) << np.uint64(32)) | np.uint64(edge)
    _move(ordered, scratch, count[1], 32 + DIGIT_BITS)
    _move(scratch, ordered, count[2], 32 + 2 * DIGIT_BITS)
