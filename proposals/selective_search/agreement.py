"""How much an image's proposals agree on each other: a better order than OpenCV's, which is close to random.

Selective search groups the same image many times over, by other colours, scales and similarities. What is an object
tends to come out of many groupings as nearly the same box. A box's score is therefore the sum over all boxes, itself
included, of (IoU - 0.4)^2 where the IoU exceeds 0.4, times two weak priors: the eighth root of its area, and
1 / (1 + 3 d^2), d being its centre's distance from the image's, in image sides. The constants were tuned on one half of
363 COCO photographs; docs/performance.md reports on pictures they have not seen.

It needs the boxes alone, so both engines give one order, and it uses nothing but +, -, x, / and square roots, which
IEEE 754 defines to the last bit: the order is the same on every machine.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.jit import kernel

LEAST_OVERLAP = 0.4
CENTRE_PULL = 3.0


def agreement_score(boxes: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float64]:
    """Scores [N] float64, higher is better, of boxes [N, 4] float32 xyxy px in a ``width`` x ``height`` image.

    A degenerate box has score 0.
    """
    sides = np.maximum(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0.0)
    area = sides[:, 0] * sides[:, 1]
    by_area = np.argsort(-area, kind="stable")
    votes = np.empty(len(boxes))
    count_votes(np.ascontiguousarray(boxes[by_area], np.float64), area[by_area], votes)
    score = np.empty(len(boxes))
    score[by_area] = votes
    centre = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / (2.0 * np.array([width, height])) - 0.5
    distance = centre[:, 0] * centre[:, 0] + centre[:, 1] * centre[:, 1]
    eighth_root = np.sqrt(np.sqrt(np.sqrt(area)))
    return np.asarray(score * eighth_root / (1.0 + CENTRE_PULL * distance))


@kernel("void(float64[:,::1], float64[::1], float64[::1])")
def count_votes(
    boxes: npt.NDArray[np.float64], area: npt.NDArray[np.float64], votes: npt.NDArray[np.float64]
) -> None:
    """The sum of (IoU - 0.4)^2 over sufficient overlaps. Areas fall, so that too small a partner ends the row."""
    votes[:] = (1.0 - LEAST_OVERLAP) * (1.0 - LEAST_OVERLAP)
    for i in range(len(boxes)):
        for j in range(i + 1, len(boxes)):
            if area[j] < LEAST_OVERLAP * area[i]:
                break
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
            if width <= 0.0 or height <= 0.0:
                continue
            shared = width * height
            excess = shared / (area[i] + area[j] - shared) - LEAST_OVERLAP
            if excess > 0.0:
                votes[i] += excess * excess
                votes[j] += excess * excess
