"""The fast engine against the installed OpenCV: the same boxes, in the same order."""

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proposals.selective_search import MODES, propose

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "china", "flower")


def resized(image, width, height):
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("size", [(240, 180), (333, 251)], ids=str)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("mode", MODES)
def test_photographs(photographs, agrees, mode, name, size):
    agrees(resized(photographs[name], *size), mode, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(500, 375), (640, 480)], ids=str)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("mode", MODES)
def test_photographs_at_the_usual_sizes(photographs, agrees, mode, name, size):
    agrees(resized(photographs[name], *size), mode, seed=11)


@pytest.mark.slow
def test_a_large_photograph(photographs, agrees):
    agrees(resized(photographs["coffee"], 1333, 889), "fast", seed=3)


@st.composite
def crops(draw, largest):
    """Where to cut a photograph, and to what size to scale the piece: (name, x, y, w, h as shares, size)."""
    name = draw(st.sampled_from(PHOTOGRAPHS))
    x, y = draw(st.floats(0, 0.8)), draw(st.floats(0, 0.8))
    w, h = draw(st.floats(0.05, 0.2)), draw(st.floats(0.05, 0.2))
    return name, x, y, w, h, (draw(st.integers(1, largest)), draw(st.integers(1, largest)))


def cut(photographs, crop):
    name, x, y, w, h, size = crop
    image = photographs[name]
    height, width = image.shape[:2]
    piece = image[int(y * height) :, int(x * width) :][: max(1, int(h * height)), : max(1, int(w * width))]
    return resized(piece, *size)


SWEEP = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@given(crop=crops(110), mode=st.sampled_from(MODES), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=300, **SWEEP)
def test_crops(photographs, agrees, crop, mode, seed):
    agrees(cut(photographs, crop), mode, seed)


@pytest.mark.slow
@given(crop=crops(320), mode=st.sampled_from(MODES), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=300, **SWEEP)
def test_many_crops(photographs, agrees, crop, mode, seed):
    agrees(cut(photographs, crop), mode, seed)


def checkerboard(height, width, cell):
    squares = np.add.outer(np.arange(height) // cell, np.arange(width) // cell) % 2
    return np.repeat((squares * 200).astype(np.uint8)[:, :, None], 3, axis=2)


def rectangles(height, width, count, seed):
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(count):
        x, y, w, h = random.integers(0, [width, height, 40, 40])
        image[y : y + h, x : x + w] = random.integers(0, 3, 3) * 100
    return image


def lettering(height, width):
    image = np.full((height, width, 3), 255, np.uint8)
    for line in range(10, height, 16):
        cv2.putText(image, "equal edges tie", (2, line), cv2.FONT_HERSHEY_PLAIN, 0.9, (0, 0, 0))
    return image


def noise(height, width, colours, seed):
    random = np.random.default_rng(seed)
    return (random.integers(0, colours, (height, width, 3)) * 60).astype(np.uint8)


TIES = {
    "flat": np.full((60, 80, 3), 128, np.uint8),
    "checkerboard 5": checkerboard(120, 150, 5),
    "checkerboard 12": checkerboard(150, 130, 12),
    "rectangles": rectangles(150, 150, 25, 0),
    "many rectangles": rectangles(140, 160, 90, 1),
    "lettering": lettering(120, 150),
    "four colours of noise": noise(90, 110, 4, 2),
    "two colours of noise": noise(130, 120, 2, 3),
    "ramp": np.repeat(np.tile(np.arange(150, dtype=np.uint8), (90, 1))[:, :, None], 3, axis=2),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TIES)
def test_ties(agrees, name, mode):
    agrees(TIES[name], mode, seed=5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", [2, 4, 8])
def test_posterised_photographs(photographs, agrees, levels, mode):
    small = resized(photographs["coffee"], 150, 110)
    agrees(small // (256 // levels) * (256 // levels), mode, seed=5)


SHAPES = [(1, 1), (1, 2), (2, 1), (1, 70), (70, 1), (2, 2), (3, 3), (3, 150), (150, 3), (20, 170), (170, 20)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(photographs, agrees, shape):
    height, width = shape
    for mode in MODES:
        agrees(resized(photographs["china"], width, height), mode, seed=2)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_any_seed(photographs, agrees, seed):
    agrees(resized(photographs["rocket"], 160, 120), "fast", seed)


def test_a_view_gives_the_boxes_of_its_copy(photographs):
    view = resized(photographs["china"], 300, 200)[::2, ::3]
    np.testing.assert_array_equal(propose(view).boxes, propose(view.copy()).boxes)
