"""Derivatives of a plane in four signed directions, which with their negatives make the paper's eight.

The paper takes Gaussian derivatives. OpenCV takes Scharr's x and y, and those of the plane turned by 45 degrees and
turned back. Warp and Scharr are OpenCV's own, so they round as it does. One plane at a time: several channels at once
are fewer calls, but no longer fit the cache, and cost more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from proposals.selective_search.workspace import Workspace

DIRECTIONS = 4  # x, y and the two of the turned plane
_AXES = ((1, 0), (0, 1))
_VECTOR = 64  # pixels; a multiple of what cv2 warps at a time


@dataclass(frozen=True)
class Gradient:
    """One direction's derivative, valid until the next one is asked for.

    values: [h, w] float32; the image's own pixels begin at (left, top). lowest, highest: its extremes among those.
    """

    values: npt.NDArray[np.float32]
    left: int
    top: int
    lowest: float
    highest: float


@dataclass(frozen=True)
class Turn:
    """How OpenCV turns an image by 45 degrees and back: affine maps, sizes (width, height), the crop at (x, y)."""

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


def oriented_gradients(plane: npt.NDArray[np.uint8], work: Workspace) -> Iterator[Gradient]:
    """The DIRECTIONS derivatives of one plane, [H, W] uint8, in OpenCV's order."""
    straight = work.array("gradient", plane.shape, np.float32)
    for axis in _AXES:
        cv2.Scharr(plane, cv2.CV_32F, *axis, dst=straight)
        yield _measured(straight, (0, 0), plane.shape)
    turn = plan_turn(*plane.shape)
    turned = work.array("turned_plane", turn.turned_size[::-1], np.uint8)
    cv2.warpAffine(plane, turn.forth, turn.turned_size, dst=turned)
    slanted = work.array("turned_gradient", turned.shape, np.float32)
    back = work.array("gradient_back", turn.back_size[::-1], np.float32)
    for axis in _AXES:
        cv2.Scharr(turned, cv2.CV_32F, *axis, dst=slanted)
        cv2.warpAffine(slanted, turn.back, turn.back_size, dst=back)
        yield _measured(back, turn.corner, plane.shape)


def _measured(values: npt.NDArray[np.float32], corner: tuple[int, int], shape: tuple[int, ...]) -> Gradient:
    left, top = corner
    lowest, highest, _, _ = cv2.minMaxLoc(values[top : top + shape[0], left : left + shape[1]])
    return Gradient(values, left, top, lowest, highest)
