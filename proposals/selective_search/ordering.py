"""OpenCV's order of boxes: a random number times the level of the merge, drawn from C's `rand()`.

OpenCV never seeds `rand()`, so the generator is part of the result. It is glibc's additive one (TYPE_3), stated here
so that neither the platform nor another thread's draws matter. Small levels come first; of equal boxes the first stays.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import helper, kernel
from proposals.selective_search.std_sort import std_sort

_RAND_MAX = 2147483647.0
_LAG, _SEPARATION, _DISCARDED = 31, 3, 310


@helper
def _seed(seed: np.uint32, state: npt.NDArray[np.int32]) -> None:
    """What srand(seed) leaves: 31 words of a Lehmer generator, by Schrage's method in C's truncating division."""
    word = np.int64(np.int32(seed)) if seed != 0 else np.int64(1)
    state[0] = word
    for index in range(1, _LAG):
        high = abs(word) // 127773
        high = high if word >= 0 else -high
        low = word - high * 127773
        word = 16807 * low - 2836 * high
        if word < 0:
            word += 2147483647
        state[index] = word


@kernel("void(uint32, float64[::1])")
def draw_shares(seed: np.uint32, shares: npt.NDArray[np.float64]) -> None:
    """Fill with what `rand() / (double)RAND_MAX` gives after `srand(seed)`."""
    state = np.empty(_LAG, np.int32)
    _seed(seed, state)
    front, rear = _SEPARATION, 0
    for draw in range(-_DISCARDED, len(shares)):
        word = np.uint32(np.uint32(state[front]) + np.uint32(state[rear]))
        state[front] = np.int32(word)
        if draw >= 0:
            shares[draw] = np.float64(word >> np.uint32(1)) / _RAND_MAX
        front = front + 1 if front + 1 < _LAG else 0
        rear = rear + 1 if rear + 1 < _LAG else 0


@helper
def _box_hash(box: npt.NDArray[np.int32]) -> np.uint64:
    value = np.uint64(0)
    for side in box:
        value = (value ^ np.uint64(side)) * np.uint64(0x9E3779B97F4A7C15)
    return value >> np.uint64(24)


@helper
def _same_box(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> bool:
    same: bool = a[0] == b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3]
    return same


@kernel("int64(int32[:,::1], float64[::1], int32[::1], int32[::1], float32[:,::1])")
def order_boxes(
    box: npt.NDArray[np.int32],
    rank: npt.NDArray[np.float64],
    order: npt.NDArray[np.int32],
    table: npt.NDArray[np.int32],
    chosen: npt.NDArray[np.float32],
) -> int:
    """Sort regions by rank and drop repeated boxes. box: [N, 4]; rank: [N], sorted in place; order: [N], scratch.

    table: scratch, a power of two of at least 2 N entries. chosen: [N, 4], out. Returns the number of boxes chosen.
    """
    for region in range(len(order)):
        order[region] = region
    std_sort(rank, order, len(order), np.empty(256, np.int64))
    table[:] = -1
    mask = np.uint64(len(table) - 1)
    count = 0
    for region in order:
        slot = _box_hash(box[region]) & mask
        while table[slot] >= 0:
            held = box[table[slot]]
            if _same_box(held, box[region]):
                break
            slot = (slot + np.uint64(1)) & mask
        if table[slot] < 0:
            table[slot] = region
            for side in range(4):
                chosen[count, side] = box[region, side]
            count += 1
    return count
