"""The oracle, photographs that ship inside wheels, and what "the same boxes" means on this machine."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
import skimage.data
import sklearn.datasets

from proposals.opencv import build_identity, has_ximgproc
from proposals.selective_search import propose

IDENTITY = build_identity()
# The engine rounds like cv2's AVX2 code where the two differ. Older processors take other paths through cv2.
EXACT = "AVX2" in IDENTITY["dispatch"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The build that equality was checked for."""
    claim = "exact" if EXACT else "at least 0.98 of boxes"
    terminalreporter.write_line(
        f"selective search oracle: cv2 {IDENTITY['version']}, dispatch {IDENTITY['dispatch']}, equality {claim}"
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """BGR uint8 photographs of scikit-image and scikit-learn, none of which is downloaded."""
    rgb = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}
    rgb |= {name: sklearn.datasets.load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: np.ascontiguousarray(image[:, :, 2::-1]) for name, image in rgb.items()}


@pytest.fixture(scope="session")
def agrees() -> Callable[[np.ndarray, str, int], None]:
    """Asserts that the fast engine gives OpenCV's boxes in OpenCV's order for (image, mode, seed)."""
    if not has_ximgproc():
        pytest.skip("this cv2 has no ximgproc: nothing to compare with")

    def check(image: np.ndarray, mode: str, seed: int) -> None:
        expected = propose(image, mode, seed, engine="opencv")
        actual = propose(image, mode, seed, engine="fast")
        if EXACT:
            np.testing.assert_array_equal(actual.boxes, expected.boxes)
            np.testing.assert_array_equal(actual.rank, expected.rank)
            return
        both = len({*map(tuple, actual.boxes)} & {*map(tuple, expected.boxes)})
        assert both >= 0.98 * max(len(actual), len(expected)), f"{both} shared boxes with {IDENTITY}"

    return check
