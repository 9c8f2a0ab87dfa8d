"""Gradients, quantised: what the texture histograms count.

Each of the four derivatives splits into its positive and its negative part, and each part is scaled to 0..255 over
the whole image and put into ten bins. Bins of both parts never fall as the gradient grows, and where one part moves the
other rests at zero. Their sum therefore determines both: one byte per pixel and direction, the `code`.
"""

import cv2
import numpy as np
import numpy.typing as npt

from proposals.selective_search.gradients import DIRECTIONS, oriented_gradients
from proposals.selective_search.jit import Index, helper, kernel
from proposals.selective_search.workspace import Workspace

BINS = 10
CODES = 2 * BINS - 1
# Adding and subtracting it rounds a small float32 to the nearest integer, halves to even.
_ROUND = np.float32(1.5 * 2**23)


def encode_texture(
    plane_set: npt.NDArray[np.uint8], work: Workspace
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Codes [C, DIRECTIONS, H, W] and the bins of a zero [C, DIRECTIONS, 2] (positive part, negative part)."""
    height, width, channels = plane_set.shape
    code = work.array("codes", (channels, DIRECTIONS, height, width), np.uint8)
    rest = np.empty((channels, DIRECTIONS, 2), np.uint8)
    plane = work.array("plane", (height, width), np.uint8)
    for channel in range(channels):
        cv2.extractChannel(plane_set, channel, dst=plane)
        for direction, gradient in enumerate(oriented_gradients(plane, work)):
            encode_gradient(
                gradient.values,
                gradient.left,
                gradient.top,
                gradient.lowest,
                gradient.highest,
                code[channel, direction],
                rest[channel, direction],
            )
    return code, rest


@helper
def _scale(low: float, high: float) -> tuple[float, float]:
    """cv2's factor and offset from [low, high] to 0..255, rounded to float32; a constant plane becomes 0."""
    if high == low:
        return 0.0, 0.0
    factor, offset = 255.0 / (high - low), -255.0 * low / (high - low)
    return np.float64(np.float32(factor)), np.float64(np.float32(offset))


@helper
def _bin(value: np.float32, factor: float, offset: float) -> Index:
    """The bin of a scaled value. The float64 sum rounded once stands for the fused multiply-add cv2 uses."""
    scaled = np.float32(np.float64(value) * factor + offset)
    scaled = min(max((scaled + _ROUND) - _ROUND, np.float32(0.0)), np.float32(255.0))
    return (np.int32(scaled) * np.int32(BINS)) >> np.int32(8)


@kernel("void(float32[:,::1], int64, int64, float64, float64, uint8[:,::1], uint8[::1])")
def encode_gradient(
    gradient: npt.NDArray[np.float32],
    left: int,
    top: int,
    lowest: float,
    highest: float,
    code: npt.NDArray[np.uint8],
    rest: npt.NDArray[np.uint8],
) -> None:
    """Code a derivative whose extremes in the image are lowest and highest.

    gradient: [h, w] float32, read from (left, top) on. code: [H, W] uint8, out, bin of the positive + bin of the
    negative part. rest: [2] uint8, out, the bins of a zero in the positive and the negative part.
    """
    zero = np.float32(0.0)
    up_factor, up_offset = _scale(max(lowest, 0.0), max(highest, 0.0))
    down_factor, down_offset = _scale(min(lowest, 0.0), min(highest, 0.0))
    rest[0] = _bin(zero, up_factor, up_offset)
    rest[1] = _bin(zero, down_factor, down_offset)
    for y in range(code.shape[0]):
        source = gradient[top + y, left : left + code.shape[1]]
        target = code[y]
        for x in range(code.shape[1]):
            rises = source[x] > zero
            moving = _bin(source[x], up_factor if rises else down_factor, up_offset if rises else down_offset)
            target[x] = moving + (rest[1] if rises else rest[0])
