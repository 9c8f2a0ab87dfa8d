"""Atoms: what every segmentation of a plane set has in common, found by one pass over the pixel graph.

Felzenszwalb and Huttenlocher join two components when the edge between them weighs at most w' + k / size for both,
w' being the heaviest edge inside. Until the first refusal a larger k takes the very same joins as the smallest. So
run the smallest k, and where it refuses an edge, freeze both components as they are: that edge and every later
one that touches either is deferred. What is frozen, or never met a refusal, is an atom. Each k then continues on
the graph of atoms and deferred edges (`segmentation`), a tenth of the pixel graph.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import helper, kernel

FROZEN = np.float32(-1.0)  # a threshold no edge meets


@helper
def find_root(parent: npt.NDArray[np.uint32], node: np.uint32) -> np.uint32:
    """The representative of a node's component; halves the path on its way."""
    above = parent[node]
    while above != node:
        further = parent[above]
        parent[node] = further
        node = further
        above = parent[node]
    return node


@kernel(
    "int64(uint64[::1], int64, float32, uint32[::1], uint32[::1], float32[::1], float32[::1], uint64[::1])"
)
def grow_atoms(
    ordered: npt.NDArray[np.uint64],
    width: int,
    smallest_k: np.float32,
    parent: npt.NDArray[np.uint32],
    size: npt.NDArray[np.uint32],
    threshold: npt.NDArray[np.float32],
    heaviest: npt.NDArray[np.float32],
    deferred: npt.NDArray[np.uint64],
) -> int:
    """Join pixels with the smallest k, freezing at refusals; returns how many edges were deferred.

    ordered: bits << 32 | edge number, ascending, real edges only. parent, size, threshold, heaviest: [H W], out,
    the components by root. deferred: out, the deferred edges in order (may not share memory with `ordered`).
    """
    for pixel in range(len(parent)):
        parent[pixel] = pixel
        size[pixel] = 1
        threshold[pixel] = smallest_k
        heaviest[pixel] = 0.0
    pixels = np.uint32(len(parent))
    count = 0
    for item in ordered:
        edge = np.uint32(item)
        downwards = edge >= pixels
        start = np.uint32(edge - pixels) if downwards else edge
        a = find_root(parent, start)
        b = find_root(parent, np.uint32(start + (width if downwards else 1)))
        if a == b:
            continue
        weight = np.uint32(item >> np.uint64(32)).view(np.float32)
        if weight <= threshold[a] and weight <= threshold[b]:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            heaviest[a] = weight
            threshold[a] = weight + smallest_k / np.float32(size[a])
        else:
            threshold[a] = FROZEN
            threshold[b] = FROZEN
            deferred[count] = item
            count += 1
    return count


@kernel("int64(uint32[::1], uint32[::1], float32[::1], uint32[::1], uint32[::1], float32[::1])")
def number_atoms(
    parent: npt.NDArray[np.uint32],
    size: npt.NDArray[np.uint32],
    heaviest: npt.NDArray[np.float32],
    atom_of_pixel: npt.NDArray[np.uint32],
    atom_size: npt.NDArray[np.uint32],
    atom_heaviest: npt.NDArray[np.float32],
) -> int:
    """Number the atoms by their first pixel in raster order; returns how many there are.

    atom_of_pixel: [H W], out. atom_size, atom_heaviest: [>= atoms], out.
    """
    unnumbered = np.uint32(0xFFFFFFFF)
    atom_of_pixel[:] = unnumbered
    count = np.uint32(0)
    for pixel in range(len(parent)):
        root = find_root(parent, np.uint32(pixel))
        atom = atom_of_pixel[root]
        if atom == unnumbered:
            atom = count
            count = np.uint32(count + 1)
            atom_size[atom] = size[root]
            atom_heaviest[atom] = heaviest[root]
            atom_of_pixel[root] = atom
        atom_of_pixel[pixel] = atom
    return int(count)
