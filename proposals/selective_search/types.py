"""The one call of this package, and what it returns."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Mode = Literal["single", "fast", "quality"]
Engine = Literal["opencv"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Proposals:
    """Boxes of one image, best first.

    boxes: [N, 4] float32, xyxy pixels of the image given, half-open.
    rank: [N] float32, ascending; the position in OpenCV's order (0 is the first box).
    """

    boxes: npt.NDArray[np.float32]
    rank: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.boxes)


def propose(
    image_bgr: npt.NDArray[np.uint8], mode: Mode = "fast", seed: int = 0, engine: Engine = "opencv"
) -> Proposals:
    """Selective-search proposals of one image.

    image_bgr: [H, W, 3] uint8, BGR. RGB gives other boxes, so hand over what proposals.images returns.
    mode: OpenCV's presets (see METHOD of the paper's section 4): single, fast or quality.
    seed: seeds the rank of boxes; same image and seed, same boxes in the same order.
    Raises TypeError for another dtype or shape (float32 is silently accepted and wrong in OpenCV).
    """
    if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
        raise TypeError(f"propose needs a non-empty [H, W, 3] uint8 BGR image, got {image_bgr.dtype} {image_bgr.shape}")
    from proposals.selective_search import opencv

    return opencv.propose(image_bgr, mode, seed)
