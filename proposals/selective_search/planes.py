"""What each mode runs on: colour planes, segmentation scales k, and the strategies' weights.

The paper's diversification (section 3.3), in OpenCV's selection and order. The order matters: it decides which random
number a region's rank is multiplied with.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from proposals.selective_search.types import Mode
from proposals.selective_search.workspace import Workspace

SIGMA = float(np.float32(0.8))  # OpenCV's float argument, widened
SCALES: dict[Mode, tuple[float, ...]] = {
    "single": (200.0,),
    "fast": (150.0, 300.0, 450.0),
    "quality": (150.0, 300.0, 450.0, 600.0, 750.0),
}
# Rows: strategies; columns: colour, fill, texture, size.
_ALL = (0.25, 0.25, 0.25, 0.25)
_NO_COLOUR = (0.0, 0.3333, 0.3333, 0.3333)
_FILL = (0.0, 1.0, 0.0, 0.0)
_SIZE = (0.0, 0.0, 0.0, 1.0)
STRATEGIES: dict[Mode, npt.NDArray[np.float32]] = {
    "single": np.array([_ALL], np.float32),
    "fast": np.array([_ALL, _NO_COLOUR], np.float32),
    "quality": np.array([_ALL, _NO_COLOUR, _FILL, _SIZE], np.float32),
}


def plane_sets(image_bgr: npt.NDArray[np.uint8], mode: Mode) -> Iterator[npt.NDArray[np.uint8]]:
    """The images to segment, each [H, W, C] uint8 with C of 1 or 3."""
    yield _convert(image_bgr, cv2.COLOR_BGR2HSV)
    if mode == "single":
        return
    yield _convert(image_bgr, cv2.COLOR_BGR2Lab)
    if mode == "fast":
        return
    gray = _convert(image_bgr, cv2.COLOR_BGR2GRAY)
    yield gray[:, :, None]
    # The paper's fifth space is hue. OpenCV's buffer holds blue by then.
    yield np.ascontiguousarray(image_bgr[:, :, :1])
    yield np.dstack([image_bgr[:, :, 2], image_bgr[:, :, 1], gray])


def _convert(image_bgr: npt.NDArray[np.uint8], code: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image_bgr, code), np.uint8)


def blur(plane_set: npt.NDArray[np.uint8], work: Workspace) -> npt.NDArray[np.float32]:
    """Smooth for the segmentation: [H, W, C] uint8 to [C, H, W] float32.

    The channels are blurred together, as OpenCV does: a row of another length would round its last pixels otherwise.
    """
    height, width, channels = plane_set.shape
    sharp = work.array("sharp", plane_set.shape, np.float32)
    np.copyto(sharp, plane_set)
    blurred = work.array("blurred", plane_set.shape, np.float32)
    cv2.GaussianBlur(sharp, (0, 0), SIGMA, dst=blurred)
    separate = work.array("blurred_planes", (channels, height, width), np.float32)
    for channel in range(channels):
        cv2.extractChannel(blurred, channel, dst=separate[channel])
    return separate
