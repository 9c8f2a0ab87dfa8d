"""What the default recipe keeps of an image's boxes, written without a line of the code that does it."""

import numpy as np


def _overlap(box, others):
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared)


def _agreement(boxes, width, height):
    sides = boxes[:, 2:] - boxes[:, :2]
    off_centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / [width, height] - 0.5
    votes = [(np.clip(_overlap(box, boxes) - 0.4, 0, None) ** 2).sum() for box in boxes]
    return np.array(votes) * sides.prod(axis=1) ** 0.125 / (1 + 3 * (off_centre**2).sum(axis=1))


def kept_by_hand(boxes, width, height):
    """Boxes and ranks of ratio3size0008@0.5 in the order of agreement; ``boxes``: of OpenCV, some within the limits."""
    boxes = np.clip(boxes.astype(np.float64), 0, [width, height, width, height])
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[(sides.min(axis=1) > 0) & (sides.max(axis=1) <= 3 * sides.min(axis=1))]
    relative = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / (width * height))
    boxes = boxes[relative <= 0.8]
    boxes = boxes[np.argsort(-_agreement(boxes, width, height), kind="stable")]
    kept = []
    for place, box in enumerate(boxes):
        if not kept or _overlap(box, boxes[kept]).max() <= 0.5:
            kept.append(place)
    return boxes[kept].astype(np.float32), np.array(kept, dtype=np.float32)
