"""libstdc++'s `std::sort`, replayed swap by swap on (key, payload) pairs.

`std::sort` is not stable: where keys tie, the order it leaves depends on every comparison it made before. OpenCV
sorts similarities and region ranks with it, takes the last or the first element, and so lets that order
choose. To choose the same, this is introsort as GNU's library states it: quicksort on the median of three down to
16 elements or to 2 lg n levels, heapsort below that depth, one insertion sort over everything at the end.

All functions sort `keys[lo:hi]` in ascending order in place and move `payload` along.
"""

from typing import TypeAlias

import numpy.typing as npt

from proposals.selective_search.jit import helper

Array: TypeAlias = npt.NDArray  # type: ignore[type-arg]

INSERTION_LIMIT = 16


@helper
def floor_log2(value: int) -> int:
    """The exponent of the highest set bit of a positive integer."""
    exponent = 0
    while value > 1:
        value >>= 1
        exponent += 1
    return exponent


@helper
def _swap(keys: Array, payload: Array, a: int, b: int) -> None:
    keys[a], keys[b] = keys[b], keys[a]
    payload[a], payload[b] = payload[b], payload[a]


@helper
def _median_to_first(keys: Array, payload: Array, first: int, a: int, b: int, c: int) -> None:
    if keys[a] < keys[b]:
        if keys[b] < keys[c]:
            median = b
        elif keys[a] < keys[c]:
            median = c
        else:
            median = a
    elif keys[a] < keys[c]:
        median = a
    elif keys[b] < keys[c]:
        median = c
    else:
        median = b
    _swap(keys, payload, first, median)


@helper
def partition(keys: Array, payload: Array, lo: int, hi: int) -> int:
    """One quicksort step of more than three elements: the cut; no key before it exceeds one behind it."""
    _median_to_first(keys, payload, lo, lo + 1, lo + (hi - lo) // 2, hi - 1)
    pivot = keys[lo]
    left, right = lo + 1, hi
    while True:
        while keys[left] < pivot:
            left += 1
        right -= 1
        while pivot < keys[right]:
            right -= 1
        if left >= right:
            return left
        _swap(keys, payload, left, right)
        left += 1


@helper
def _sift(keys: Array, payload: Array, lo: int, hole: int, length: int) -> None:
    """Walk the hole to the bottom along the larger children, then lift the held element back up from there."""
    top = hole
    key, load = keys[lo + hole], payload[lo + hole]
    child = hole
    while child < (length - 1) // 2:
        child = 2 * (child + 1)
        if keys[lo + child] < keys[lo + child - 1]:
            child -= 1
        keys[lo + hole], payload[lo + hole] = keys[lo + child], payload[lo + child]
        hole = child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * (child + 1)
        keys[lo + hole], payload[lo + hole] = keys[lo + child - 1], payload[lo + child - 1]
        hole = child - 1
    parent = (hole - 1) // 2
    while hole > top and keys[lo + parent] < key:
        keys[lo + hole], payload[lo + hole] = keys[lo + parent], payload[lo + parent]
        hole = parent
        parent = (hole - 1) // 2
    keys[lo + hole], payload[lo + hole] = key, load


@helper
def heap_sort(keys: Array, payload: Array, lo: int, hi: int) -> None:
    """What introsort falls back on when quicksort has gone too deep."""
    length = hi - lo
    for parent in range((length - 2) // 2, -1, -1):
        _sift(keys, payload, lo, parent, length)
    for last in range(hi - 1, lo, -1):
        _swap(keys, payload, lo, last)
        _sift(keys, payload, lo, 0, last - lo)


@helper
def insertion_sort(keys: Array, payload: Array, lo: int, hi: int) -> None:
    """The closing pass. It is stable, and never crosses a cut of `partition`."""
    for i in range(lo + 1, hi):
        key, load = keys[i], payload[i]
        j = i
        while j > lo and key < keys[j - 1]:
            keys[j], payload[j] = keys[j - 1], payload[j - 1]
            j -= 1
        keys[j], payload[j] = key, load


@helper
def quick_sort(keys: Array, payload: Array, lo: int, hi: int, depth: int, stack: Array) -> None:
    """Introsort's loop on [lo, hi) with `depth` levels left; runs of up to 16 stay unsorted.

    stack: [>= 3 * (depth + 1)] integers, scratch.
    """
    top = 0
    stack[0], stack[1], stack[2] = lo, hi, depth
    while top >= 0:
        lo, hi, depth = stack[top], stack[top + 1], stack[top + 2]
        top -= 3
        while hi - lo > INSERTION_LIMIT:
            if depth == 0:
                heap_sort(keys, payload, lo, hi)
                break
            depth -= 1
            cut = partition(keys, payload, lo, hi)
            top += 3
            stack[top], stack[top + 1], stack[top + 2] = lo, cut, depth
            lo = cut


@helper
def std_sort(keys: Array, payload: Array, count: int, stack: Array) -> None:
    """Sort the first `count` pairs exactly as libstdc++ does. stack: [>= 256] int64 scratch."""
    if count > 1:
        quick_sort(keys, payload, 0, count, 2 * floor_log2(count), stack)
        insertion_sort(keys, payload, 0, count)
