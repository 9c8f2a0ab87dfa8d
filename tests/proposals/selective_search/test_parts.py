"""Stages that have an oracle of their own: the graph segmentation, C's rand, cv2's warp."""

import ctypes
import platform

import cv2
import numpy as np
import pytest

from proposals.selective_search import fast, gradients, ordering, planes, regions
from proposals.selective_search.workspace import Workspace


@pytest.mark.parametrize("k", [150.0, 300.0, 750.0])
def test_segmentation_of_every_k(photographs, k):
    image = cv2.resize(photographs["china"], (260, 190), interpolation=cv2.INTER_AREA)
    for plane_set in planes.plane_sets(image, "quality"):
        work = Workspace()
        graph = fast.build_atom_graph(plane_set, 150.0, work)
        region_of_atom, count = fast.segment(graph, k, fast.TieBreaker(graph, work), work)
        oracle = cv2.ximgproc.segmentation.createGraphSegmentation(planes.SIGMA, k, 100)
        expected = oracle.processImage(plane_set if plane_set.shape[2] == 3 else plane_set[:, :, 0].copy())
        assert count == expected.max() + 1
        np.testing.assert_array_equal(region_of_atom[graph.atom_of_pixel], expected)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another rand()")
@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1])
def test_rand_is_glibcs(seed):
    libc = ctypes.CDLL(None)
    libc.srand(ctypes.c_uint(seed))
    expected = [libc.rand() / 2147483647 for _ in range(1000)]
    shares = np.empty(1000)
    ordering.draw_shares(np.uint32(seed), shares)
    np.testing.assert_array_equal(shares, expected)


@pytest.mark.parametrize("shape", [(37, 53), (180, 240), (90, 300), (300, 40), (1, 9), (251, 333)], ids=str)
def test_the_cropped_warp_is_the_whole_one(shape):
    height, width = shape
    turn = gradients.plan_turn(height, width)
    turned_width, turned_height = turn.turned_size
    random = np.random.default_rng(0)
    gradient = random.normal(0, 900, (turned_height, turned_width)).astype(np.float32)
    whole = cv2.warpAffine(gradient, turn.back, (max(turned_width, width), max(turned_height, height)))
    part = cv2.warpAffine(gradient, turn.back, turn.back_size)
    x, y = turn.corner
    np.testing.assert_array_equal(part[y : y + height, x : x + width], whole[y : y + height, x : x + width])


@pytest.mark.parametrize("cells", [1, 2, 5, 16, 40])
def test_cells_that_touch_wherever_they_lie(cells):
    """Noise: every cell touches every other, which cells in one piece never do."""
    of_pixel = np.random.default_rng(0).integers(0, cells, (200, 200), dtype=np.uint32)
    pairs = regions.adjacent_cells(of_pixel, cells, Workspace())
    expected = [low << 32 | high for high in range(cells) for low in range(high)]
    assert sorted(pairs.tolist()) == sorted(expected)
