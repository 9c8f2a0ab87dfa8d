"""One image: from its bytes to its filtered proposals, or to the reason why it has none."""

import cv2

from pipeline.image_records import Found, Kernel, Refusal, Stopwatch
from proposals.boxes import scale
from proposals.errors import AlignDetError
from proposals.filter_spec import Filtered, FilterSpec
from proposals.filters import apply_filter
from proposals.images import Bgr, ImageRejected, decode_bgr, ran_out_of_memory, resize_max_side
from proposals.selective_search import propose
from proposals.selective_search.types import Proposals


def mine_image(data: bytes, sha256: str, kernel: Kernel, watch: Stopwatch) -> Found | Refusal:
    """Decode ``data``, search it, filter what is found. sha256: of ``data``, hex; with the recipe it seeds the order.

    Raises MemoryError whichever library ran out of memory, and AlignDetError when this installation cannot search.
    """
    try:
        with watch.stage("decode"):
            image = decode_bgr(data, max_pixels=kernel.recipe.max_pixels)
        proposals = _proposals(image.bgr, kernel, kernel.recipe.image_seed(sha256), watch)
    except ImageRejected as error:
        return Refusal.of(error)
    except cv2.error as error:
        if ran_out_of_memory(error):
            raise MemoryError from error
        raise
    return Found(image.width, image.height, image.orientation, proposals)


def _proposals(bgr: Bgr, kernel: Kernel, seed: int, watch: Stopwatch) -> Filtered:
    height, width = bgr.shape[:2]
    recipe = kernel.recipe
    with watch.stage("resize"):
        small, scale_x, scale_y = resize_max_side(bgr, recipe.max_side)
    with watch.stage("propose"):
        found = _search(small, kernel, seed)
    with watch.stage("filter"):
        boxes = scale(found.boxes, scale_x, scale_y)
        spec = FilterSpec.parse(recipe.filter)
        return apply_filter(boxes, found.rank, width, height, spec, recipe.rank)


def _search(bgr: Bgr, kernel: Kernel, seed: int) -> Proposals:
    try:
        return propose(bgr, kernel.recipe.mode, seed, kernel.engine)
    except (AlignDetError, MemoryError):
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise ImageRejected("propose", "search_failed", type(error).__name__) from error
