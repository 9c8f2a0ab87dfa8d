"""Graph segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) of the atom graph, for one k.

First scan: join where the edge is within both thresholds. Second scan, over the refused edges: join where either
side is below 100 pixels. Edges go from light to heavy in both.

In the first scan equal edges may come in any order: a join at weight w leaves a threshold of at least w, so the same
set joins. In the second they may not: a small component between two large ones goes with whichever is asked first.
`absorb_small` therefore stops at a group of equal edges in which one small component has two partners to choose
from, and the caller sorts out the order (`edge_ties`). Where every small one has a single partner, all join anyhow.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.atoms import find_root
from proposals.selective_search.jit import helper, kernel

MIN_SIZE = np.uint32(100)
DONE = -1


@kernel("void(uint64[::1], int64, uint32[::1], uint32[:,::1], float32[::1], uint32[::1])")
def link_atoms(
    deferred: npt.NDArray[np.uint64],
    width: int,
    atom_of_pixel: npt.NDArray[np.uint32],
    ends: npt.NDArray[np.uint32],
    weight: npt.NDArray[np.float32],
    number: npt.NDArray[np.uint32],
) -> None:
    """The atom graph's edges, in order. ends: [E, 2], out, atoms. weight, number (the pixel graph's): [E], out."""
    for index in range(len(deferred)):
        edge = np.uint32(deferred[index])
        number[index] = edge
        downwards = edge >= len(atom_of_pixel)
        pixel = edge - len(atom_of_pixel) if downwards else edge
        beyond = pixel + (width if downwards else 1)
        ends[index, 0] = atom_of_pixel[np.uint32(pixel)]
        ends[index, 1] = atom_of_pixel[np.uint32(beyond)]
        weight[index] = np.uint32(deferred[index] >> np.uint64(32)).view(np.float32)


@helper
def _join(parent: npt.NDArray[np.uint32], size: npt.NDArray[np.uint32], a: np.uint32, b: np.uint32) -> None:
    parent[b] = a
    size[a] += size[b]


@kernel(
    "int64(float32, uint32[::1], float32[::1], uint32[:,::1], float32[::1],"
    " uint32[::1], uint32[::1], float32[::1], uint32[::1])"
)
def join_atoms(
    k: np.float32,
    atom_size: npt.NDArray[np.uint32],
    atom_heaviest: npt.NDArray[np.float32],
    ends: npt.NDArray[np.uint32],
    weights: npt.NDArray[np.float32],
    parent: npt.NDArray[np.uint32],
    size: npt.NDArray[np.uint32],
    threshold: npt.NDArray[np.float32],
    refused: npt.NDArray[np.uint32],
) -> int:
    """The first scan. Fills parent, size, threshold [atoms] and refused (indices of edges); returns their count."""
    for atom in range(len(atom_size)):
        parent[atom] = atom
        size[atom] = atom_size[atom]
        threshold[atom] = atom_heaviest[atom] + k / np.float32(atom_size[atom])
    count = 0
    for edge in range(len(weights)):
        a = find_root(parent, ends[edge, 0])
        b = find_root(parent, ends[edge, 1])
        if a == b:
            continue
        weight = weights[edge]
        if weight <= threshold[a] and weight <= threshold[b]:
            _join(parent, size, a, b)
            threshold[a] = weight + k / np.float32(size[a])
        else:
            refused[count] = edge
            count += 1
    return count


@helper
def _has_choice(
    group: npt.NDArray[np.uint32],
    stamp: int,
    ends: npt.NDArray[np.uint32],
    parent: npt.NDArray[np.uint32],
    size: npt.NDArray[np.uint32],
    partner: npt.NDArray[np.uint32],
) -> bool:
    """Whether some small component meets two different ones in this group of equally heavy edges.

    partner: [atoms, 2], (the group that wrote it, the partner found there).
    """
    for edge in group:
        a = find_root(parent, ends[edge, 0])
        b = find_root(parent, ends[edge, 1])
        if a == b:
            continue
        for small, other in ((a, b), (b, a)):
            if size[small] >= MIN_SIZE:
                continue
            if partner[small, 0] == stamp and partner[small, 1] != other:
                return True
            partner[small, 0], partner[small, 1] = stamp, other
    return False


@kernel(
    "int64(uint32[::1], int64, int64, uint32[:,::1], float32[::1], uint32[::1], uint32[::1], uint32[:,::1])"
)
def absorb_small(
    refused: npt.NDArray[np.uint32],
    start: int,
    settled: int,
    ends: npt.NDArray[np.uint32],
    weights: npt.NDArray[np.float32],
    parent: npt.NDArray[np.uint32],
    size: npt.NDArray[np.uint32],
    partner: npt.NDArray[np.uint32],
) -> int:
    """The second scan, from `start` on; before `settled` the order of equals is known to be OpenCV's.

    Returns DONE, or the first position of a group of equals whose order matters and is not settled.
    partner: [atoms, 2] scratch, set to 0xFFFFFFFF before the first call.
    """
    while start < len(refused):
        weight = weights[refused[start]]
        stop = start + 1
        while stop < len(refused) and weights[refused[stop]] == weight:
            stop += 1
        group = refused[start:stop]
        if stop - start > 1 and start >= settled and _has_choice(group, start, ends, parent, size, partner):
            return start
        for edge in group:
            a = find_root(parent, ends[edge, 0])
            b = find_root(parent, ends[edge, 1])
            if a != b and (size[a] < MIN_SIZE or size[b] < MIN_SIZE):
                _join(parent, size, a, b)
        start = stop
    return DONE


@kernel("int64(uint32[::1], uint32[::1], uint32[::1])")
def number_regions(
    parent: npt.NDArray[np.uint32], number: npt.NDArray[np.uint32], region_of_atom: npt.NDArray[np.uint32]
) -> int:
    """Number the components by raster order of their first pixel, which is the order of atoms; returns how many.

    number: [atoms] scratch. region_of_atom: [atoms], out.
    """
    unnumbered = np.uint32(0xFFFFFFFF)
    number[:] = unnumbered
    count = 0
    for atom in range(len(parent)):
        root = find_root(parent, np.uint32(atom))
        if number[root] == unnumbered:
            number[root] = count
            count += 1
        region_of_atom[atom] = number[root]
    return count
