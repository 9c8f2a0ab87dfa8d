"""The oracle: cv2.ximgproc's selective search, made repeatable.

OpenCV multiplies each region's rank by C `rand()`, which it never seeds; `cv2.setRNGSeed` does not reach it.
Seeding C's generator right before the call makes the order a function of (image, seed), as long as no foreign code in
the process calls `rand()` meanwhile.
"""

import ctypes
import threading

import cv2
import numpy as np
import numpy.typing as npt

from proposals.boxes import as_boxes
from proposals.opencv import require_ximgproc
from proposals.selective_search.types import Mode, Proposals

_LIBC = ctypes.CDLL(None)
# cv2 lets other threads run while it searches, and C has one generator for all of them.
_DRAWING = threading.Lock()


def propose(image_bgr: npt.NDArray[np.uint8], mode: Mode, seed: int) -> Proposals:
    """See `proposals.selective_search.propose`. Raises AlignDetError when cv2 has no ximgproc."""
    require_ximgproc()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image_bgr))
    if mode == "single":
        search.switchToSingleStrategy()
    elif mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    with _DRAWING:
        _LIBC.srand(ctypes.c_uint(seed & 0xFFFFFFFF))
        found = search.process()
    xywh = as_boxes(found)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return Proposals(boxes=boxes, rank=np.arange(len(boxes), dtype=np.float32))
