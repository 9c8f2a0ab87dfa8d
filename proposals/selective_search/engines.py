"""The one call of this package: an image in, its proposals out, by either engine."""

import importlib
import threading
from types import ModuleType

import numpy as np
import numpy.typing as npt

from proposals.selective_search.types import ENGINES, MODES, Engine, Mode, Proposals

_LOADING = threading.Lock()


def propose(
    image_bgr: npt.NDArray[np.uint8], mode: Mode = "fast", seed: int = 0, engine: Engine = "fast"
) -> Proposals:
    """Selective-search proposals of one image.

    image_bgr: [H, W, 3] uint8, BGR. RGB gives other boxes, so hand over what proposals.images returns.
    mode: OpenCV's presets: single, fast or quality.
    seed: seeds the rank of boxes; same image and seed, same boxes in the same order.
    engine: "fast" or "opencv". Both return the same boxes in the same order, the first in a fifteenth of the time.
    OpenCV draws from C `rand()`: another thread of the process that calls it too changes the order of "opencv".
    Raises TypeError for another dtype or shape (float32 is silently accepted and wrong in OpenCV), ValueError for an
    unknown mode or engine, AlignDetError when engine is "opencv" and cv2 has no ximgproc.
    """
    if mode not in MODES or engine not in ENGINES:
        raise ValueError(f"no mode {mode!r} or no engine {engine!r}: {MODES}, {ENGINES}")
    if not isinstance(image_bgr, np.ndarray):
        raise TypeError(f"propose needs a [H, W, 3] uint8 BGR array, got {type(image_bgr).__name__}")
    if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
        raise TypeError(
            f"propose needs a non-empty [H, W, 3] uint8 BGR image, got {image_bgr.dtype} {image_bgr.shape}"
        )
    if engine == "opencv":
        from proposals.selective_search import opencv

        return opencv.propose(image_bgr, mode, seed)
    proposals: Proposals = load_kernels().propose(image_bgr, mode, seed)
    return proposals


def load_kernels() -> ModuleType:
    """The fast engine, compiled: by this process, or by another one that this one waits for."""
    with _LOADING:
        # Importing numba takes longer than many an image, and only this engine needs it.
        from proposals.selective_search import cache

        with cache.one_compiler():
            importlib.import_module("proposals.selective_search.agreement")
            return importlib.import_module("proposals.selective_search.fast")
