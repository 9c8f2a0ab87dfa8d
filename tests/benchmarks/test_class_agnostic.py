"""`benchmarks/class_agnostic.py`: which boxes are rivals."""

import pytest
from class_agnostic import without_rivals


@pytest.mark.parametrize("images", [(1, 2), (2008000008, 2008000009), ("one", "two")])
def test_only_boxes_of_one_image_that_overlap_are_rivals(images):
    first, second = images
    boxes = [(first, [10, 10, 20, 20], 0.9), (first, [11, 10, 20, 20], 0.8), (second, [10, 10, 20, 20], 0.7)]
    found = [{"image_id": image, "bbox": box, "score": score} for image, box, score in boxes]
    assert without_rivals(found) == [found[0], found[2]]
