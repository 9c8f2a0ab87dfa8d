"""Images that mmcv and OpenCV fail on, read as fine-tuning reads them, in this process and in a loader's."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from torch.utils.data import DataLoader

from aligndet_train.finetuning.unreadable import unreadable_image_named
from proposals.errors import AlignDetError
from tests.aligndet_train.finetuning.test_labels import coco, written


def read_all(folder: Path, workers: int) -> None:
    dataset = DATASETS.build(
        {"type": "mmdet.CocoDataset", "ann_file": str(written(folder / "t.json", coco([(1, "a"), (2, "b")]))),
         "data_prefix": {"img": f"{folder}/"}, "metainfo": {"classes": ("a", "b")},
         "pipeline": [{"type": "LoadImageFromFile"}]}
    )  # fmt: skip
    with unreadable_image_named():
        list(DataLoader(dataset, num_workers=workers, collate_fn=list))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_image_is_named(workers, tmp_path):
    (tmp_path / "astronaut.jpg").write_bytes(b"no image")
    with pytest.raises(AlignDetError, match=rf"^{re.escape(str(tmp_path))}/astronaut\.jpg cannot be decoded"):
        read_all(tmp_path, workers)


@pytest.mark.parametrize(("workers", "name"), [(0, r".*/astronaut\.jpg"), (1, "an image, which --workers 0")])
def test_what_opencv_refuses_is_named_where_that_is_known(workers, name, tmp_path):
    (tmp_path / "astronaut.jpg").touch()
    with pytest.raises(AlignDetError, match=rf"^{name}.* cannot be decoded"):
        read_all(tmp_path, workers)


def test_sound_images_and_other_errors_pass(photos, tmp_path):
    shutil.copy(photos / "astronaut.jpg", tmp_path)
    read_all(tmp_path, 0)
    with pytest.raises(AssertionError, match="of ours"), unreadable_image_named():
        raise AssertionError("of ours")
    with pytest.raises(cv2.error, match="resize"), unreadable_image_named():
        cv2.resize(np.zeros((0, 0, 3), np.uint8), (2, 2))
