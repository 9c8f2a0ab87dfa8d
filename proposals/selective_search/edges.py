"""The pixel graph's edges and their order: one sort per plane set, whatever the number of segmentations.

Every one of the n pixels owns two undirected edges: p to its right and n + p downwards. The number alone gives both
ends. OpenCV lists each edge twice, once from either end, and sorts that list again for every k. A component only
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
def _distances(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> None:
    """Distances of paired colours. first, second: [C, L]; weight: [L], out. One loop per C, so that each vectorises."""
    if len(first) == 3:
        for x in range(len(weight)):
            a, b, c = first[0, x] - second[0, x], first[1, x] - second[1, x], first[2, x] - second[2, x]
            weight[x] = np.sqrt(a * a + b * b + c * c)
    else:
        for x in range(len(weight)):
            a = first[0, x] - second[0, x]
            weight[x] = np.sqrt(a * a)


@kernel("void(float32[:,:,::1], float32[:,:,::1])")
def weigh_edges(blurred: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> None:
    """blurred: [C, H, W] float32, C of 1 or 3. weight: [2, H, W] float32, out, in the order of edge numbers."""
    height, width = blurred.shape[1], blurred.shape[2]
    for y in range(height):
        row = blurred[:, y]
        _distances(row[:, :-1], row[:, 1:], weight[0, y, : width - 1])
        weight[0, y, width - 1] = NO_EDGE
        if y + 1 < height:
            _distances(row, blurred[:, y + 1], weight[1, y])
        else:
            weight[1, y] = NO_EDGE


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
