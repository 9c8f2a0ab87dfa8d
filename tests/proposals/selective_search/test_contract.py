"""What callers may rely on, whatever OpenCV does."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from proposals.errors import AlignDetError
from proposals.selective_search import ENGINES, propose, workspace


@pytest.fixture(scope="module")
def image(photographs):
    return cv2.resize(photographs["astronaut"], (160, 120), interpolation=cv2.INTER_AREA)


def test_fast_is_the_default(image):
    np.testing.assert_array_equal(propose(image).boxes, propose(image, "fast", 0, engine="fast").boxes)


@pytest.mark.parametrize("engine", ENGINES)
def test_shapes_and_types(image, engine):
    proposals = propose(image, engine=engine)
    assert proposals.boxes.dtype == proposals.rank.dtype == np.float32
    assert proposals.boxes.shape == (len(proposals), 4)
    assert np.all(np.diff(proposals.rank) > 0)
    x0, y0, x1, y1 = proposals.boxes.T
    assert np.all((x0 >= 0) & (y0 >= 0) & (x0 < x1) & (y0 < y1) & (x1 <= 160) & (y1 <= 120))
    assert len(np.unique(proposals.boxes, axis=0)) == len(proposals)


def test_the_seed_permutes_the_boxes(image):
    one, other = propose(image, seed=1).boxes, propose(image, seed=2).boxes
    assert {*map(tuple, one)} == {*map(tuple, other)}
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["float32", "gray", "alpha", "empty"],
)
def test_other_arrays_are_refused(wrong):
    with pytest.raises(TypeError, match="uint8 BGR"):
        propose(wrong)


def test_the_input_is_not_written_to(image):
    frozen = image.copy()
    frozen.setflags(write=False)
    propose(frozen, "quality")


def test_results_survive_the_next_image(image):
    first = propose(image)
    kept = first.boxes.copy()
    propose(image[::-1, ::-1])
    np.testing.assert_array_equal(first.boxes, kept)


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
def test_what_the_buffers_held_before_plays_no_part(photographs, mode):
    """0xFF is NaN in float32, and a product of it and a weight of zero is, too."""
    for photograph in photographs.values():
        small = cv2.resize(photograph, (160, 120), interpolation=cv2.INTER_AREA)
        clean = propose(small, mode).boxes
        for buffer in workspace.current()._buffers.values():
            buffer[:] = 0xFF
        np.testing.assert_array_equal(propose(small, mode).boxes, clean)


@pytest.mark.parametrize("engine", ["fast", "opencv"])
def test_threads_do_not_disturb_each_other(image, engine):
    images = [np.ascontiguousarray(np.roll(image, 7 * shift, axis=1)) for shift in range(8)]
    alone = [propose(each, engine=engine).boxes for each in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: propose(each, engine=engine).boxes, images))
    for expected, actual in zip(alone, together, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("wrong", [{"mode": "Fast"}, {"engine": "OpenCV"}, {"mode": "x", "engine": "opencv"}])
def test_a_mistyped_mode_or_engine_is_refused(image, wrong):
    with pytest.raises(ValueError, match=r"no mode .* or no engine"):
        propose(image, **wrong)


def test_no_image_at_all_is_a_type_error():
    with pytest.raises(TypeError, match="NoneType"):
        propose(None)


def test_without_ximgproc_only_the_oracle_is_gone(image, monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    assert len(propose(image)) > 0
    with pytest.raises(AlignDetError, match="opencv-contrib-python"):
        propose(image, engine="opencv")


@pytest.mark.slow
def test_memory_is_bounded_per_pixel(photographs):
    """The worst image, noise, at 4096 px on a side: docs/performance.md states the bound."""
    random = np.random.default_rng(0)
    workspace.release()
    propose(random.integers(0, 256, (4096, 4096, 3), np.uint8), "fast")
    assert workspace.current().nbytes <= 200 * 4096 * 4096
    workspace.release()
