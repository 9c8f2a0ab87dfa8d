"""What `benchmarks/image_domain.py pack` makes of photographs."""

import json

import cv2
import numpy as np
from image_domain import pack

from proposals.dataset import open_dataset


def test_photographs_of_one_name_in_two_folders_are_two(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/1.jpg", "b/1.jpg", "b/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / name), rng.integers(0, 255, (32, 48, 3), dtype=np.uint8))
    # COCO lets a name have folders.
    (tmp_path / "labels.json").write_text(json.dumps({"images": [{"file_name": "photos/a/1.jpg"}]}))
    pack(tmp_path / "photos", tmp_path / "labels.json", tmp_path / "PACK", None)
    uris = sorted(record.uri for record in open_dataset(tmp_path / "PACK" / "dataset"))
    assert [uri.split("images/")[-1] for uri in uris] == ["a/1.jpg", "b/1.jpg", "b/1.png.jpg"]
    assert (tmp_path / "PACK" / "labelled" / "images" / "photos" / "a" / "1.jpg").is_file()


def test_labelled_pictures_may_lie_elsewhere(tmp_path):
    for folder in ("photos", "JPEGImages"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "1.jpg"), np.full((32, 48, 3), 99, np.uint8))
    (tmp_path / "labels.json").write_text(json.dumps({"images": [{"file_name": "1.jpg"}]}))
    pack(tmp_path / "photos", tmp_path / "labels.json", tmp_path / "PACK", None, tmp_path / "JPEGImages")
    packed = tmp_path / "PACK" / "labelled" / "images" / "1.jpg"
    assert packed.read_bytes() == (tmp_path / "JPEGImages" / "1.jpg").read_bytes()
