"""Labelled boxes as CocoDataset wants them: a COCO json and the folder of its images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proposals.errors import AlignDetError
from proposals.ground_truth import GroundTruth, read_ground_truth


@dataclass(frozen=True)
class Labels:
    """annotations: a COCO json. images: the folder its file names are relative to. classes: in category order."""

    annotations: Path
    images: Path
    classes: tuple[str, ...]


def read_labels(path: Path, images: Path | None, scratch: Path) -> Labels:
    """Labels from a COCO json or a Pascal VOC folder, checked against the images on disk.

    images: default beside the json (``images/``, the split's name, or the json's own folder), or ``JPEGImages`` of a
    VOC folder. scratch: where a VOC folder's COCO form is written. Raises AlignDetError when there is no label or no
    image where they should be.
    """
    truth = read_ground_truth(path)
    if not truth.names or not truth.classes:
        raise AlignDetError(f"{path} names no image or no category: nothing to train on")
    folder = _image_folder(path, truth.names[0], images)
    missing = [name for name in truth.names if not (folder / name).is_file()]
    if missing:
        raise AlignDetError(
            f"{len(missing)} of {len(truth.names)} images of {path} are not in {folder}, {missing[0]} first. "
            "Name their folder: --train-images / --val-images"
        )
    annotations = path if path.is_file() else _write_coco(truth, scratch / f"{path.name}.json", path)
    return Labels(annotations.resolve(), folder.resolve(), truth.classes)


def _image_folder(path: Path, first: str, given: Path | None) -> Path:
    if given is not None:
        return given
    home = path.parent if path.is_file() else path
    candidates = [home / "images", home / path.stem, home / "JPEGImages", home, home.parent / "JPEGImages"]
    return next((folder for folder in candidates if (folder / first).is_file()), home)


def _write_coco(truth: GroundTruth, target: Path, source: Path) -> Path:
    if (truth.sizes <= 0).any():
        bad = truth.names[int((truth.sizes <= 0).any(axis=1).argmax())]
        raise AlignDetError(f"{source} does not say how large {bad} is (size/width, size/height)")
    owner = [i for i, n in enumerate((truth.offsets[1:] - truth.offsets[:-1]).tolist()) for _ in range(n)]
    annotations: list[dict[str, Any]] = [
        {
            "id": row + 1,
            "image_id": owner[row],
            "category_id": int(truth.labels[row]),
            "bbox": truth.boxes[row].tolist(),
            "area": float(truth.area[row]),
            "iscrowd": int(truth.ignore[row]),
        }
        for row in range(len(truth.boxes))
    ]
    images = [
        {"id": i, "file_name": name, "width": int(size[0]), "height": int(size[1])}
        for i, (name, size) in enumerate(zip(truth.names, truth.sizes, strict=True))
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(truth.classes)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return target
