"""Oriented gradients of a plane, quantised: what the texture histograms count.

The paper takes Gaussian derivatives in eight directions. OpenCV takes Scharr's x and y, and those of the plane
turned by 45 degrees and turned back; each splits into its positive and its negative part, and each part is scaled to
0..255 over the whole image and put into ten bins. Blur, warp and Scharr are OpenCV's own, so they round as it does.

Bins of both parts never fall as the gradient grows, and where one part moves the other rests at zero. Their sum
therefore determines both: one byte per pixel and direction, the `code`, instead of two planes.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import Index, helper, kernel

DIRECTIONS = 4  # x, y and the two of the turned plane
BINS = 10
CODES = 2 * BINS - 1
_VECTOR = 64  # pixels; a multiple of what cv2 warps at a time
# Adding and subtracting it rounds a small float32 to the nearest integer, halves to even.
_ROUND = np.float32(1.5 * 2**23)


@dataclass(frozen=True)
class Turn:
    """How OpenCV turns an image by 45 degrees and back: affine maps, sizes (width, height), the crop's corner."""

    forth: npt.NDArray[np.float64]
    back: npt.NDArray[np.float64]
    turned_size: tuple[int, int]
    back_size: tuple[int, int]
    corner: tuple[int, int]


def plan_turn(height: int, width: int) -> Turn:
    """The turn of an image of this size.

    The way back turns about the *integer* centre, onto a canvas that holds at least the image (a narrow image's turned
    one is shorter than it). Ours ends soon after the crop's lower right corner. Starting it at the upper left one as
    well would change how coordinates round, and so would ending a row inside one of cv2's vectors.
    """
    centre = (width / 2.0, height / 2.0)
    _, _, turned_width, turned_height = cv2.RotatedRect(centre, (width, height), 45.0).boundingRect()
    forth = np.asarray(cv2.getRotationMatrix2D(centre, 45.0, 1.0), np.float64)
    forth[0, 2] += turned_width / 2.0 - centre[0]
    forth[1, 2] += turned_height / 2.0 - centre[1]
    middle = (float(turned_width // 2), float(turned_height // 2))
    back = np.asarray(cv2.getRotationMatrix2D(middle, -45.0, 1.0), np.float64)
    canvas = (max(turned_width, width), max(turned_height, height))
    corner = ((canvas[0] - width) // 2, (canvas[1] - height) // 2)
    whole_vectors = -(-(corner[0] + width) // _VECTOR) * _VECTOR
    back_size = (min(canvas[0], whole_vectors), corner[1] + height)
    return Turn(forth, back, (turned_width, turned_height), back_size, corner)


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
    """Code a signed gradient whose extremes in the crop are lowest and highest.

    gradient: float32, read from (left, top) on. code: [H, W] uint8, out, bin of the positive + bin of the negative
    part. rest: [2] uint8, out, the bins of a zero in the positive and the negative part.
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
            up = _bin(max(source[x], zero), up_factor, up_offset)
            down = _bin(min(source[x], zero), down_factor, down_offset)
            target[x] = up + down
