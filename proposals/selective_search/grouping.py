"""Hierarchical grouping: merge the two most similar neighbours until nobody has a neighbour.

OpenCV sorts its whole list of neighbouring pairs before each merge and takes the last. A maximum has no need of a
sorted list, unless it is shared: then `std::sort`, which is not stable, picks one by what the list went through
before. So the list is kept unsorted, and at the first shared maximum the strategy starts over with OpenCV's sort
replayed at every step. Strategies of fill or size alone tie all the time and are replayed from the outset.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import Index, helper, kernel
from proposals.selective_search.similarity import (
    COLOUR,
    FILL,
    KINDS,
    SIZE,
    TEXTURE,
    combine,
    fill_similarity,
    intersect,
    size_similarity,
)
from proposals.selective_search.std_sort import std_sort

TIED = -1
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)


@helper
def _find_maximum(similarity: npt.NDArray[np.float32], count: int) -> int:
    """The position of the largest similarity, or TIED."""
    best, shared = 0, False
    for index in range(1, count):
        if similarity[index] > similarity[best]:
            best, shared = index, False
        elif similarity[index] == similarity[best]:
            shared = True
    return TIED if shared else best


@helper
def _detach(
    pairs: npt.NDArray[np.uint64],
    similarity: npt.NDArray[np.float32],
    count: int,
    a: Index,
    b: Index,
    seen: npt.NDArray[np.int32],
    stamp: int,
    near: npt.NDArray[np.int64],
) -> tuple[int, int]:
    """Erase every pair that holds a or b, keeping the others' order; collect the partners once each, in order.

    Returns (pairs left, partners in `near`).
    """
    kept, found = 0, 0
    for index in range(count):
        pair = pairs[index]
        first, second = np.int64(pair >> _HIGH), np.int64(pair & _LOW)
        if first != a and first != b and second != a and second != b:
            pairs[kept], similarity[kept] = pair, similarity[index]
            kept += 1
            continue
        other = second if first in (a, b) else first
        if other != a and other != b and seen[other] != stamp:
            seen[other] = stamp
            near[found] = other
            found += 1
    return kept, found


@helper
def _mix_histograms(
    histograms: npt.NDArray[np.float32], into: int, a: Index, b: Index, size_a: np.int32, size_b: np.int32
) -> None:
    """The merged region's histogram: the mean of the two weighted by their sizes before the merge."""
    share_a, share_b, total = np.float32(size_a), np.float32(size_b), np.float32(size_a + size_b)
    for index in range(histograms.shape[1]):
        histograms[into, index] = (histograms[a, index] * share_a + histograms[b, index] * share_b) / total


@helper
def _merge_boxes(box: npt.NDArray[np.int32], into: int, a: Index, b: Index) -> None:
    box[into, 0] = min(box[a, 0], box[b, 0])
    box[into, 1] = min(box[a, 1], box[b, 1])
    box[into, 2] = max(box[a, 2], box[b, 2])
    box[into, 3] = max(box[a, 3], box[b, 3])


@kernel(
    "int64(float32[::1], boolean, int64, uint64[::1], float32[:,::1], float32[:,::1], float32[:,::1],"
    " int32[::1], int32[:,::1], int32[::1], float32, uint64[::1], float32[::1], int32[::1], int64[::1], float32[:,::1])"
)
def group_regions(
    weights: npt.NDArray[np.float32],
    replay: bool,
    regions: int,
    initial_pairs: npt.NDArray[np.uint64],
    parts: npt.NDArray[np.float32],
    colour: npt.NDArray[np.float32],
    texture: npt.NDArray[np.float32],
    size: npt.NDArray[np.int32],
    box: npt.NDArray[np.int32],
    level: npt.NDArray[np.int32],
    pixels: np.float32,
    pairs: npt.NDArray[np.uint64],
    similarity: npt.NDArray[np.float32],
    seen: npt.NDArray[np.int32],
    near: npt.NDArray[np.int64],
    found: npt.NDArray[np.float32],
) -> int:
    """Run one strategy. Rows below `regions` hold the initial regions, the merges are appended behind them.

    weights: [4], by similarity. replay: sort as OpenCV does instead of scanning for the maximum.
    initial_pairs: [P], parts: [P, 4], from `similarity.compare_neighbours`. colour, texture, size, box, level:
    [2 * regions, ...]. pairs, similarity: [P] scratch; seen: [2 * regions], near: [P], found: [4, P] scratch.
    Returns the number of rows filled, or TIED when a shared maximum asks for `replay`.
    """
    stack = np.empty(256, np.int64)
    row = np.empty(KINDS, np.float32)
    count = len(initial_pairs)
    for index in range(count):
        pairs[index] = initial_pairs[index]
        similarity[index] = combine(parts[index], weights)
    # What a strategy does not weigh is not filled in below: what the memory held may be NaN, and so its product with 0.
    for kind in (COLOUR, TEXTURE):
        if weights[kind] == 0:
            found[kind] = 0
    seen[:] = -1
    level[:regions] = 1
    new = regions
    while count > 0:
        if replay:
            std_sort(similarity, pairs, count, stack)
            best = count - 1
        else:
            best = _find_maximum(similarity, count)
            if best == TIED:
                return TIED
        a, b = np.int64(pairs[best] >> _HIGH), np.int64(pairs[best] & _LOW)
        count, partners = _detach(pairs, similarity, count, a, b, seen, new, near)
        if weights[COLOUR] > 0:
            _mix_histograms(colour, new, a, b, size[a], size[b])
            intersect(colour, new, near[:partners], found[COLOUR])
        if weights[TEXTURE] > 0:
            _mix_histograms(texture, new, a, b, size[a], size[b])
            intersect(texture, new, near[:partners], found[TEXTURE])
        _merge_boxes(box, new, a, b)
        size[new] = size[a] + size[b]
        level[new] = max(level[a], level[b]) + 1
        for index in range(partners):
            other = near[index]
            row[COLOUR], row[TEXTURE] = found[COLOUR, index], found[TEXTURE, index]
            row[SIZE] = size_similarity(size[new], size[other], pixels)
            row[FILL] = fill_similarity(box[new], box[other], size[new], size[other], pixels)
            pairs[count] = (np.uint64(new) << _HIGH) | np.uint64(other)
            similarity[count] = combine(row, weights)
            count += 1
        new += 1
    return new
