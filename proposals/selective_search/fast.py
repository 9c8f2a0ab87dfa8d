"""The fast engine: OpenCV's selective search, stage by stage, with nothing computed twice.

For each set of colour planes: edges (`edges`), atoms (`atoms`), one segmentation per k (`segmentation`, `edge_ties`),
their common cells (`regions`), gradients (`texture`), histograms (`features`), then one hierarchical grouping per k and
strategy (`similarity`, `grouping`). At the end all regions are put in order (`ordering`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proposals.selective_search import (
    atoms,
    edge_ties,
    edges,
    features,
    grouping,
    ordering,
    planes,
    regions,
    segmentation,
    similarity,
    texture,
)
from proposals.selective_search.types import Mode, Proposals
from proposals.selective_search.workspace import Workspace, current

_MAX_TREE_NODES = 1 << 16


@dataclass(frozen=True)
class AtomGraph:
    """What the segmentations of one plane set share."""

    atom_of_pixel: npt.NDArray[np.uint32]  # [H, W]
    size: npt.NDArray[np.uint32]  # [A]
    heaviest: npt.NDArray[np.float32]  # [A]
    ends: npt.NDArray[np.uint32]  # [E, 2]
    weight: npt.NDArray[np.float32]  # [E], ascending
    edge: npt.NDArray[np.uint32]  # [E], the pixel graph's edge numbers


@dataclass(frozen=True)
class Cells:
    """The common refinement of one plane set's segmentations, and what was measured on it."""

    region_of_cell: list[npt.NDArray[np.uint32]]  # one per segmentation
    regions: list[int]
    size: npt.NDArray[np.int32]
    box: npt.NDArray[np.int32]
    pairs: npt.NDArray[np.uint64]
    tally: npt.NDArray[np.int32]
    rest: npt.NDArray[np.uint8]


def propose(image_bgr: npt.NDArray[np.uint8], mode: Mode, seed: int) -> Proposals:
    """See `proposals.selective_search.propose`."""
    image = np.ascontiguousarray(image_bgr)
    boxes: list[npt.NDArray[np.int32]] = []
    levels: list[npt.NDArray[np.int32]] = []
    for plane_set in planes.plane_sets(image, mode):
        for box, level in _group_plane_set(plane_set, mode, current()):
            boxes.append(box)
            levels.append(level)
    ordered = _order(np.concatenate(boxes), np.concatenate(levels), seed, current())
    return Proposals(boxes=ordered, rank=np.arange(len(ordered), dtype=np.float32))


def _group_plane_set(
    plane_set: npt.NDArray[np.uint8], mode: Mode, work: Workspace
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    """Boxes and levels of every region, one array pair per (k, strategy)."""
    graph = build_atom_graph(plane_set, planes.SCALES[mode][0], work)
    ties = TieBreaker(graph, work)
    labels = [segment(graph, k, ties, work) for k in planes.SCALES[mode]]
    cells = _measure_cells(plane_set, graph, labels, work)
    for index in range(len(labels)):
        yield from _group_segmentation(cells, index, plane_set.shape, planes.STRATEGIES[mode], work)


def build_atom_graph(plane_set: npt.NDArray[np.uint8], smallest_k: float, work: Workspace) -> AtomGraph:
    """The pixel graph of the blurred planes, contracted as far as all k agree."""
    height, width = plane_set.shape[:2]
    pixels = height * width
    weight = work.array("weight", (2, height, width), np.float32)
    edges.weigh_edges(planes.blur(plane_set, work), weight)
    ordered, deferred = work.array("ordered", (2, 2 * pixels), np.uint64)
    count = work.array("digits", (edges.DIGITS, 1 << edges.DIGIT_BITS), np.int64)
    edges.sort_edges(weight.view(np.uint32).reshape(-1), ordered, deferred, count)
    parent, size = work.array("pixel_parent", (2, pixels), np.uint32)
    threshold, heaviest = work.array("pixel_weight", (2, pixels), np.float32)
    ordered = ordered[: edges.edge_count(height, width)]
    refused = atoms.grow_atoms(
        ordered, width, np.float32(smallest_k), parent, size, threshold, heaviest, deferred
    )
    atom_of_pixel = work.array("atom_of_pixel", pixels, np.uint32)
    atom_size = work.array("atom_size", pixels, np.uint32)
    atom_heaviest = work.array("atom_heaviest", pixels, np.float32)
    atom_count = atoms.number_atoms(parent, size, heaviest, atom_of_pixel, atom_size, atom_heaviest)
    ends = work.array("ends", (refused, 2), np.uint32)
    atom_weight = work.array("atom_weight", refused, np.float32)
    edge = work.array("edge", refused, np.uint32)
    segmentation.link_atoms(deferred[:refused], width, atom_of_pixel, ends, atom_weight, edge)
    return AtomGraph(
        atom_of_pixel.reshape(height, width),
        atom_size[:atom_count],
        atom_heaviest[:atom_count],
        ends,
        atom_weight,
        edge,
    )


class TieBreaker:
    """Answers in which order OpenCV meets edges of one weight. Reuses the edges' sorting buffer, on first demand."""

    def __init__(self, graph: AtomGraph, work: Workspace) -> None:
        self._graph = graph
        self._work = work
        self._used = 0

    def _start(self) -> None:
        height, width = self._graph.atom_of_pixel.shape
        pixels = height * width
        bits = self._work.array("weight", 2 * pixels, np.uint32)
        listed = 2 * edges.edge_count(height, width)
        self._keys, self._edges = self._work.array("ordered", (2, 4 * pixels), np.uint32)[:, :listed]
        self._tree = self._work.array(
            "tree", (min(listed + 1, _MAX_TREE_NODES), edge_ties.NODE_FIELDS), np.int64
        )
        edge_ties.list_edges_twice(bits, width, self._keys, self._edges, self._tree)
        self._used = 1

    def settle(self, refused: npt.NDArray[np.uint32], start: int) -> int:
        """Put the group of equals that begins at `start` into OpenCV's order, in place; returns its end."""
        if self._used == 0:
            self._start()
        weight = self._graph.weight[refused[start]]
        stop = int(np.searchsorted(self._graph.weight[refused[start:]], weight, side="right")) + start
        group = refused[start:stop].copy()
        # Edges of one weight come out of the radix sort by number.
        wanted = self._graph.edge[group]
        found = np.empty(2 * len(group), np.int64)
        self._used = edge_ties.order_equals(
            int(weight.view(np.uint32)), wanted, found, self._keys, self._edges, self._tree, self._used
        )
        _, first = np.unique(found, return_index=True)
        refused[start:stop] = group[found[np.sort(first)]]
        return stop


def segment(
    graph: AtomGraph, k: float, ties: TieBreaker, work: Workspace
) -> tuple[npt.NDArray[np.uint32], int]:
    """The segmentation for one k: (region of each atom [A], number of regions)."""
    count = len(graph.size)
    parent, size, number = work.array("atom_parent", (3, count), np.uint32)
    threshold = work.array("atom_threshold", count, np.float32)
    refused = work.array("refused", len(graph.weight), np.uint32)
    refused = refused[
        : segmentation.join_atoms(
            np.float32(k),
            graph.size,
            graph.heaviest,
            graph.ends,
            graph.weight,
            parent,
            size,
            threshold,
            refused,
        )
    ]
    partner = work.array("partner", (count, 2), np.uint32)
    partner[:] = 0xFFFFFFFF
    start = settled = 0
    while True:
        start = segmentation.absorb_small(
            refused, start, settled, graph.ends, graph.weight, parent, size, partner
        )
        if start == segmentation.DONE:
            break
        settled = ties.settle(refused, start)
    region_of_atom = np.empty(count, np.uint32)
    return region_of_atom, segmentation.number_regions(parent, number, region_of_atom)


def _measure_cells(
    plane_set: npt.NDArray[np.uint8],
    graph: AtomGraph,
    labels: list[tuple[npt.NDArray[np.uint32], int]],
    work: Workspace,
) -> Cells:
    cell_of_atom, count = labels[0]
    table = work.table("cells_table", 2 * len(graph.size), np.uint32)
    for region_of_atom, _ in labels[1:]:
        finer = np.empty_like(cell_of_atom)
        count = regions.refine_cells(cell_of_atom, region_of_atom, finer, table)
        cell_of_atom = finer
    region_of_cell = []
    for region_of_atom, _ in labels:
        of_cell = np.empty(count, np.uint32)
        of_cell[cell_of_atom] = region_of_atom
        region_of_cell.append(of_cell)
    cell_of_pixel = work.array("cell_of_pixel", graph.atom_of_pixel.shape, np.uint32)
    size, box = np.empty(count, np.int32), np.empty((count, 4), np.int32)
    regions.paint_cells(graph.atom_of_pixel, cell_of_atom, cell_of_pixel, size, box)
    pairs = regions.adjacent_cells(cell_of_pixel, count, work)
    codes, rest = texture.encode_texture(plane_set, work)
    tally = work.array("cell_tally", (count, plane_set.shape[2] * features.TALLY), np.int32)
    features.tally_cells(plane_set, codes.reshape(-1, cell_of_pixel.size), cell_of_pixel.reshape(-1), tally)
    return Cells(
        region_of_cell, [regions_ for _, regions_ in labels], size, box, pairs, tally, rest.reshape(-1, 2)
    )


def _group_segmentation(
    cells: Cells,
    index: int,
    shape: tuple[int, ...],
    strategies: npt.NDArray[np.float32],
    work: Workspace,
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    region_of_cell, count = cells.region_of_cell[index], cells.regions[index]
    pixels, channels = np.float32(shape[0] * shape[1]), shape[2]
    size = work.array("region_size", 2 * count, np.int32)
    box = work.array("region_box", (2 * count, 4), np.int32)
    colour = work.array("colour", (2 * count, channels * features.COLOUR_BINS), np.float32)
    texture_ = work.array("texture", (2 * count, channels * features.TEXTURE_BINS), np.float32)
    regions.measure_regions(cells.size, cells.box, region_of_cell, size[:count], box[:count])
    tally = work.array("region_tally", (count, cells.tally.shape[1]), np.int32)
    features.describe_regions(
        cells.tally, region_of_cell, cells.rest, size[:count], tally, colour[:count], texture_[:count]
    )
    pairs = regions.pairs_of_regions(cells.pairs, region_of_cell)
    parts = work.array("parts", (len(pairs), similarity.KINDS), np.float32)
    similarity.compare_neighbours(
        pairs, colour[:count], texture_[:count], size[:count], box[:count], pixels, parts
    )
    level = work.array("level", 2 * count, np.int32)
    scratch = (
        work.array("live_pairs", len(pairs), np.uint64),
        work.array("live_similarity", len(pairs), np.float32),
        work.array("seen", 2 * count, np.int32),
        work.array("near", len(pairs), np.int64),
        work.array("found", (similarity.KINDS, len(pairs)), np.float32),
    )
    for weights in strategies:
        ties_are_the_rule = np.count_nonzero(weights) == 1
        arguments = (count, pairs, parts, colour, texture_, size, box, level, pixels, *scratch)
        rows = grouping.group_regions(weights, ties_are_the_rule, *arguments)
        if rows == grouping.TIED:
            rows = grouping.group_regions(weights, True, *arguments)
        yield box[:rows].copy(), level[:rows].copy()


def _order(
    box: npt.NDArray[np.int32], level: npt.NDArray[np.int32], seed: int, work: Workspace
) -> npt.NDArray[np.float32]:
    rank = work.array("rank", len(box), np.float64)
    ordering.draw_shares(np.uint32(seed & 0xFFFFFFFF), rank)
    rank *= level
    chosen = work.array("chosen", (len(box), 4), np.float32)
    order = work.array("order", len(box), np.int32)
    table = work.table("boxes_table", 2 * len(box), np.int32)
    return chosen[: ordering.order_boxes(box, rank, order, table, chosen)].copy()
