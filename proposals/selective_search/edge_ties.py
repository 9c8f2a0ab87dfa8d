"""The order OpenCV's `std::sort` leaves among equally heavy edges, worked out only where it is asked for.

OpenCV sorts a list with every edge in it twice: pixel by pixel up, left, down, right. Sorting all of it again would
cost more than the segmentation. But introsort splits its range and never looks across a cut again, so to know the
order among edges of weight w only the splits on the way to w must be made. They are kept in a binary tree, and later
questions, also those of the other k, go on from there.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import helper, kernel
from proposals.selective_search.std_sort import (
    INSERTION_LIMIT,
    floor_log2,
    heap_sort,
    insertion_sort,
    partition,
    quick_sort,
)

# Columns of the tree: a node's range, the quicksort levels it has left, its state, its pivot, its left child.
_LO, _HI, _DEPTH, _STATE, _PIVOT, _LEFT = range(6)
NODE_FIELDS = 6
_UNTOUCHED, _SPLIT, _SORTED = range(3)
_STACK = 256


@kernel("void(uint32[::1], int64, uint32[::1], uint32[::1], int64[:,::1])")
def list_edges_twice(
    bits: npt.NDArray[np.uint32],
    width: int,
    keys: npt.NDArray[np.uint32],
    edges: npt.NDArray[np.uint32],
    tree: npt.NDArray[np.int64],
) -> None:
    """OpenCV's unsorted list, and a tree of one untouched node. bits: [2 H W]; keys, edges: [2 x edges], out."""
    pixels = len(bits) // 2
    count = 0
    for pixel in range(pixels):
        y, x = pixel // width, pixel % width
        for there, edge in (
            (y > 0, pixels + pixel - width),
            (x > 0, pixel - 1),
            (pixel + width < pixels, pixels + pixel),
            (x + 1 < width, pixel),
        ):
            if there:
                keys[count] = bits[edge]
                edges[count] = edge
                count += 1
    tree[0, _LO], tree[0, _HI], tree[0, _STATE] = 0, count, _UNTOUCHED
    tree[0, _DEPTH] = 2 * floor_log2(count)


@helper
def _open(
    node: int,
    used: int,
    tree: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint32],
    edges: npt.NDArray[np.uint32],
) -> int:
    """Split an untouched node as introsort would, or sort it where introsort stops; returns the nodes in use."""
    lo, hi, depth = tree[node, _LO], tree[node, _HI], tree[node, _DEPTH]
    if hi - lo <= INSERTION_LIMIT or depth == 0 or used + 2 > len(tree):
        if hi - lo > INSERTION_LIMIT:
            if depth == 0:
                heap_sort(keys, edges, lo, hi)
            else:
                quick_sort(keys, edges, lo, hi, depth, np.empty(_STACK, np.int64))
        insertion_sort(keys, edges, lo, hi)
        tree[node, _STATE] = _SORTED
        return used
    cut = partition(keys, edges, lo, hi)
    tree[node, _STATE], tree[node, _LEFT] = _SPLIT, used
    # The pivot was left at the front of the range, and nothing has moved it since.
    tree[node, _PIVOT] = keys[lo]
    for child, start, stop in ((used, lo, cut), (used + 1, cut, hi)):
        tree[child, _LO], tree[child, _HI] = start, stop
        tree[child, _DEPTH], tree[child, _STATE] = depth - 1, _UNTOUCHED
    return used + 2


@helper
def _emit(
    key: int,
    lo: int,
    hi: int,
    keys: npt.NDArray[np.uint32],
    edges: npt.NDArray[np.uint32],
    wanted: npt.NDArray[np.uint32],
    found: npt.NDArray[np.int64],
    count: int,
) -> int:
    """Append to `found` the indices into `wanted` of the edges of this weight in a sorted range."""
    for position in range(lo, hi):
        if keys[position] == key:
            index = np.searchsorted(wanted, edges[position])
            if index < len(wanted) and wanted[index] == edges[position]:
                found[count] = index
                count += 1
    return count


@kernel("int64(int64, uint32[::1], int64[::1], uint32[::1], uint32[::1], int64[:,::1], int64)")
def order_equals(
    key: int,
    wanted: npt.NDArray[np.uint32],
    found: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint32],
    edges: npt.NDArray[np.uint32],
    tree: npt.NDArray[np.int64],
    used: int,
) -> int:
    """Where the edges `wanted` (numbers, ascending; all of weight bits `key`) stand in OpenCV's sorted list.

    found: [2 x wanted], out, their indices in that order, each edge twice. Returns the tree's nodes in use.
    """
    stack = np.empty(_STACK, np.int64)
    top, count = 0, 0
    stack[0] = 0
    while top >= 0:
        node = stack[top]
        top -= 1
        if tree[node, _STATE] == _UNTOUCHED:
            used = _open(node, used, tree, keys, edges)
        if tree[node, _STATE] == _SORTED:
            count = _emit(key, tree[node, _LO], tree[node, _HI], keys, edges, wanted, found, count)
            continue
        left = tree[node, _LEFT]
        if key >= tree[node, _PIVOT]:
            top += 1
            stack[top] = left + 1
        if key <= tree[node, _PIVOT]:
            top += 1
            stack[top] = left
    return used
