"""Regions of all segmentations at once: their common cells, the cells' boxes and adjacency.

The segmentations of a plane set, one per k, are not nested, but every region of each is a union of cells, the cells
being the sets of pixels that all of them keep together. What costs a pass over the pixels (boxes, adjacency,
histograms) is done once for the cells, of which there are some hundreds, and added up per region.

OpenCV looks for neighbours only at pixels with row > 0 and column > 0, and there to the left, above, and above left:
two regions that touch along the first row or column alone are not neighbours. We keep to that.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import helper, kernel
from proposals.selective_search.workspace import Workspace

_EMPTY = np.uint32(0xFFFFFFFF)
_NO_PAIR = np.uint64(0xFFFFFFFFFFFFFFFF)


@helper
def _mix(value: np.uint64) -> np.uint64:
    """Spread a key over 64 bits (Fibonacci hashing)."""
    return (value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)


@kernel("int64(uint32[::1], uint32[::1], uint32[::1], uint32[::1])")
def refine_cells(
    cell: npt.NDArray[np.uint32],
    region: npt.NDArray[np.uint32],
    finer: npt.NDArray[np.uint32],
    table: npt.NDArray[np.uint32],
) -> int:
    """Split cells where regions differ. cell, region: [atoms]; finer: [atoms], out; returns the number of cells.

    table: scratch, a power of two of at least 2 x atoms entries; it holds the first atom of each new cell.
    """
    table[:] = _EMPTY
    mask = np.uint64(len(table) - 1)
    count = np.uint32(0)
    for atom in range(len(cell)):
        slot = _mix((np.uint64(cell[atom]) << np.uint64(32)) | np.uint64(region[atom])) & mask
        while True:
            first = table[slot]
            if first == _EMPTY:
                table[slot] = atom
                finer[atom] = count
                count = np.uint32(count + 1)
                break
            if cell[first] == cell[atom] and region[first] == region[atom]:
                finer[atom] = finer[first]
                break
            slot = (slot + np.uint64(1)) & mask
    return int(count)


@kernel("void(uint32[:,::1], uint32[::1], uint32[:,::1], int32[::1], int32[:,::1])")
def paint_cells(
    atom_of_pixel: npt.NDArray[np.uint32],
    cell_of_atom: npt.NDArray[np.uint32],
    cell_of_pixel: npt.NDArray[np.uint32],
    size: npt.NDArray[np.int32],
    box: npt.NDArray[np.int32],
) -> None:
    """Label the pixels and measure the cells. size: [cells], out. box: [cells, 4], out, xyxy half-open."""
    height, width = atom_of_pixel.shape
    size[:] = 0
    box[:, 0], box[:, 1] = width, height
    box[:, 2], box[:, 3] = 0, 0
    for y in range(height):
        row = cell_of_pixel[y]
        for x in range(width):
            row[x] = cell_of_atom[atom_of_pixel[y, x]]
        start = 0
        for x in range(1, width + 1):
            if x < width and row[x] == row[start]:
                continue
            cell = row[start]
            size[cell] += x - start
            box[cell, 0] = min(box[cell, 0], start)
            box[cell, 1] = min(box[cell, 1], y)
            box[cell, 2] = max(box[cell, 2], x)
            box[cell, 3] = y + 1
            start = x


@kernel("void(int32[::1], int32[:,::1], uint32[::1], int32[::1], int32[:,::1])")
def measure_regions(
    cell_size: npt.NDArray[np.int32],
    cell_box: npt.NDArray[np.int32],
    region_of_cell: npt.NDArray[np.uint32],
    size: npt.NDArray[np.int32],
    box: npt.NDArray[np.int32],
) -> None:
    """Sizes and boxes of regions from their cells'. size: [R], box: [R, 4], out."""
    size[:] = 0
    for cell in range(len(region_of_cell)):
        region = region_of_cell[cell]
        if size[region] == 0:
            box[region] = cell_box[cell]
        size[region] += cell_size[cell]
        for side in range(2):
            box[region, side] = min(box[region, side], cell_box[cell, side])
            box[region, side + 2] = max(box[region, side + 2], cell_box[cell, side + 2])


@helper
def _note_pair(table: npt.NDArray[np.uint64], a: np.uint32, b: np.uint32, count: int) -> int:
    """Add an unordered pair to the hash set; returns how many it holds."""
    if a > b:
        a, b = b, a
    pair = (np.uint64(a) << np.uint64(32)) | np.uint64(b)
    mask = np.uint64(len(table) - 1)
    slot = _mix(pair) & mask
    while table[slot] != pair:
        if table[slot] == _NO_PAIR:
            table[slot] = pair
            return count + 1
        slot = (slot + np.uint64(1)) & mask
    return count


@kernel("int64(uint32[:,::1], uint64[::1])")
def find_neighbours(cell_of_pixel: npt.NDArray[np.uint32], table: npt.NDArray[np.uint64]) -> int:
    """The pairs of adjacent cells, lower << 32 | higher, moved to the front of `table`; returns how many.

    table: scratch, a power of two. -1 when it is too small, see `adjacent_cells`.
    """
    height, width = cell_of_pixel.shape
    table[:] = _NO_PAIR
    count = 0
    for y in range(1, height):
        above, row = cell_of_pixel[y - 1], cell_of_pixel[y]
        for x in range(1, width):
            here, left, up, corner = row[x], row[x - 1], above[x], above[x - 1]
            if here == left and here == up and here == corner:
                continue
            if count + 3 >= len(table):
                return -1
            if here != left:
                count = _note_pair(table, here, left, count)
            if here != up:
                count = _note_pair(table, here, up, count)
            if here != corner and corner != left and corner != up:
                count = _note_pair(table, here, corner, count)
    front = 0
    for pair in table:
        if pair != _NO_PAIR:
            table[front] = pair
            front += 1
    return count


def adjacent_cells(
    cell_of_pixel: npt.NDArray[np.uint32], cells: int, work: Workspace
) -> npt.NDArray[np.uint64]:
    """The pairs of adjacent cells, lower << 32 | higher, in no order.

    Of connected cells there are fewer than 3 x cells pairs: their adjacency is a planar graph (squares with one
    diagonal). A cell may also lie in many places, as the intersection of winding regions, and then have more.
    """
    least = 4 * cells
    while (count := find_neighbours(cell_of_pixel, table := work.table("pairs_table", least, np.uint64))) < 0:
        least = 2 * len(table)
    return table[:count].copy()


def pairs_of_regions(
    cell_pairs: npt.NDArray[np.uint64], region_of_cell: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint64]:
    """Adjacent regions i < j as i << 32 | j in row-major order, from the adjacent cells."""
    a = region_of_cell[cell_pairs >> np.uint64(32)].astype(np.uint64)
    b = region_of_cell[cell_pairs & np.uint64(0xFFFFFFFF)].astype(np.uint64)
    pairs = (np.minimum(a, b) << np.uint64(32)) | np.maximum(a, b)
    return np.unique(pairs[a != b])
