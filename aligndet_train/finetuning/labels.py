"""Labelled boxes as CocoDataset wants them: a COCO json and the folder of its images."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aligndet_train.finetuning.voc_lists import is_voc_list, read_truth, voc_root
from proposals.dataset.files import write_atomically
from proposals.errors import AlignDetError
from proposals.ground_truth import GroundTruth, read_ground_truth

# Where below its --work-dir a run keeps labels in a form of its own.
LABELS = "labels"
# What mmdet and pycocotools read of every annotation without asking whether it is there.
_OF_ANNOTATIONS = {"id", "area", "iscrowd"}
_TOO_SMALL = (
    "are narrower or lower than 1 px (a bbox is x, y, width, height in px: are they normalised to 0..1?)"
)
_OUTSIDE = "lie outside of their image"


@dataclass(frozen=True)
class Labels:
    """annotations: a COCO json. images: the folder its file names are relative to. classes: in category order.

    source: what the user named; ``annotations`` is another file where mmdet could not read that one. names: the file
    names of all images. sizes: their width and height in px as the labels have them, 0 where they say none.
    """

    annotations: Path
    images: Path
    classes: tuple[str, ...]
    source: Path
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Kept:
    """How many of ``images`` mmdet's dataset keeps for training, and why it leaves out the others.

    small: those with a side below ``min_size`` px. empty: others that have no annotation. boxes: how many are listed.
    faulty: of them, those that nobody can mean, by what is wrong with them.
    """

    images: int
    small: int
    empty: int
    min_size: float
    boxes: int
    faulty: Mapping[str, int]

    @property
    def number(self) -> int:
        """Of the images that are kept."""
        return self.images - self.small - self.empty

    @property
    def left_out(self) -> str | None:
        """A sentence about the others; None where all are kept."""
        reasons = {
            "without a box": self.empty,
            f"with a side below {self.min_size:g} px (the config's filter_cfg.min_size)": self.small,
        }
        counted = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
        left = self.images - self.number
        return f"training leaves out {left} of {self.images} images: {counted}" if counted else None

    @property
    def faults(self) -> str | None:
        """What is wrong with how many boxes, in words; None where nothing is."""
        counted = ", ".join(f"{number} {reason}" for reason, number in self.faulty.items())
        return f"{sum(self.faulty.values())} of {self.boxes} boxes: {counted}" if counted else None


def read_labels(path: Path, images: Path | None, scratch: Path) -> Labels:
    """Labels from a COCO json, a Pascal VOC folder or one of its lists, checked against the images on disk.

    images: default beside the json (``images/``, the split's name, or the json's own folder), or ``JPEGImages`` of a
    VOC folder. scratch: where a COCO form of VOC labels, and of json files that mmdet misreads, is written. Raises
    AlignDetError when there is no label or no image where they should be, an image's file is empty, or a box is of a
    category that the json does not list.
    """
    truth = read_truth(path)
    if not truth.names or not truth.classes:
        raise AlignDetError(f"{path} names no image or no category: nothing to train on")
    folder = _image_folder(path, truth.names[0], images)
    _require_images(truth.names, folder, path)
    as_it_is = path.is_file() and not is_voc_list(path) and _fit_file(path)
    annotations = path if as_it_is else _write_coco(truth, truth.classes, scratch, path)
    sizes = tuple((int(width), int(height)) for width, height in truth.sizes)
    return Labels(annotations.resolve(), folder.resolve(), truth.classes, path, tuple(truth.names), sizes)


def matched(labels: Labels, classes: tuple[str, ...], scratch: Path) -> Labels:
    """``labels`` numbered by ``classes``, those that the detector learns: a held-out set may lack some.

    scratch: see `read_labels`. Raises AlignDetError when there are boxes of a class that is not among them.
    """
    if labels.classes == classes:
        return labels
    truth = read_ground_truth(labels.annotations)
    foreign = sorted({truth.classes[i] for i in set(truth.labels.tolist())} - set(classes))
    if foreign:
        raise AlignDetError(
            f"{labels.source} has boxes of {', '.join(foreign)}, which the detector does not learn; it learns "
            f"{', '.join(classes)}. Take them out, or add them to the training set"
        )
    return replace(
        labels, annotations=_write_coco(truth, classes, scratch, labels.source).resolve(), classes=classes
    )


def shared_images(train: Labels, val: Labels) -> list[str]:
    """The images of ``val``, by their names there, that are ``train``'s as well: one name in one folder."""
    learned = {os.path.normpath(train.images / name) for name in train.names}
    return [name for name in val.names if os.path.normpath(val.images / name) in learned]


def require_boxes(labels: Labels, purpose: str, filter_cfg: Mapping[str, Any] | None) -> Kept:
    """Which images of ``labels`` mmdet keeps; filter_cfg: of its dataset, None where it keeps all.

    Raises AlignDetError, with the reasons, when it keeps no box of them to ``purpose`` ("learn from").
    """
    content = json.loads(labels.annotations.read_bytes())
    images = {image["id"]: image for image in content["images"]}
    listed = content["annotations"]
    boxes = [box for box in listed if box["image_id"] in images]
    rule = filter_cfg or {}
    min_size = rule.get("min_size", 0)
    reasons = Counter(_why_dropped(box, images[box["image_id"]], min_size) for box in boxes)
    if reasons[None] == 0:
        counted = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        raise AlignDetError(
            f"{labels.source} has no box to {purpose}: "
            + (f"of {len(boxes)} boxes {counted}" if boxes else "it has none at all")
        )
    small = {number for number, image in images.items() if _is_small(image, min_size)}
    # mmdet asks for an annotation of any kind here, also for one that it passes over.
    empty = images.keys() - {box["image_id"] for box in boxes} if rule.get("filter_empty_gt") else set()
    faulty = {reason: reasons[reason] for reason in (_TOO_SMALL, _OUTSIDE) if reasons[reason]}
    if foreign := len(listed) - len(boxes):
        faulty["are of images that are not listed"] = foreign
    return Kept(len(images), len(small), len(empty - small), min_size, len(listed), faulty)


def _is_small(image: Mapping[str, Any], min_size: float) -> bool:
    return bool(min(image["width"], image["height"]) < min_size)


def _why_dropped(box: Mapping[str, Any], image: Mapping[str, Any], min_size: float) -> str | None:
    """Of the reasons for which mmdet's CocoDataset passes a box over, the one that this box gives."""
    x, y, width, height = box["bbox"]
    if box.get("iscrowd") or box.get("ignore"):
        return "are crowds or difficult ones"
    if width < 1 or height < 1:
        return _TOO_SMALL
    if not (x < image["width"] and y < image["height"] and x + width > 0 and y + height > 0):
        return _OUTSIDE
    if _is_small(image, min_size):
        return (
            f"are in images with a side below {min_size:g} px, which the config leaves out (enlarge them, or lower "
            "min_size in the filter_cfg of its dataset)"
        )
    return None


def _image_folder(path: Path, first: str, given: Path | None) -> Path:
    if given is not None:
        return given
    home = voc_root(path) if is_voc_list(path) else path.parent if path.is_file() else path
    of_voc = home / "JPEGImages"
    candidates = [home / "images", home / path.stem, of_voc, home, home.parent / "JPEGImages"]
    likely = of_voc if of_voc.is_dir() else home
    return next((folder for folder in candidates if (folder / first).is_file()), likely)


def _require_images(names: Sequence[str], folder: Path, path: Path) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise AlignDetError(
            f"{len(missing)} of {len(names)} images of {path} are not in {folder}, {missing[0]} first. "
            "Name their folder: --train-images / --val-images"
        )
    empty = [name for name in names if (folder / name).stat().st_size == 0]
    if empty:
        raise AlignDetError(
            f"{len(empty)} of {len(names)} images of {path} are empty files, {empty[0]} first. Fetch them again, or "
            "take them out"
        )


def _fit_file(path: Path) -> bool:
    """Whether mmdet and pycocotools read the file as it is meant. Raises AlignDetError for boxes of no category."""
    raw = path.read_bytes()
    content = json.loads(raw)
    known = {category["id"] for category in content["categories"]}
    unknown = [box["category_id"] for box in content["annotations"] if box["category_id"] not in known]
    if unknown:
        raise AlignDetError(
            f"{len(unknown)} of {len(content['annotations'])} annotations of {path} are of categories that it does "
            f"not list (ids {', '.join(sorted(map(str, set(unknown))))}): add these to its `categories`, or take the "
            "annotations out"
        )
    return _is_plain_utf8(raw) and _fit(content)


def _is_plain_utf8(raw: bytes) -> bool:
    """pycocotools opens the file as text; json itself also takes UTF-16, and a mark at the beginning."""
    try:
        return not raw.decode().startswith("\ufeff")
    except UnicodeDecodeError:
        return False


def _fit(content: Mapping[str, Any]) -> bool:
    """Whether what the file says is what mmdet and pycocotools take it for.

    Both number classes by the order of ``categories``, not by their ids, and find them by name; pycocotools
    keeps the ids of boxes as numbers and takes 0 for unmatched.
    """
    numbers = [category["id"] for category in content["categories"]]
    boxes = [annotation.get("id") for annotation in content["annotations"]]
    return (
        numbers == sorted(set(numbers))
        and all(isinstance(category["name"], str) for category in content["categories"])
        and all(type(number) is int and number > 0 for number in boxes)
        and len(set(boxes)) == len(boxes)
        and all(
            annotation.keys() >= _OF_ANNOTATIONS
            and annotation["iscrowd"] in (0, 1)
            and all(isinstance(value, int | float) for value in annotation["bbox"])
            and _has_area(annotation)
            for annotation in content["annotations"]
        )
        and all(_is_positive(image.get(side)) for image in content["images"] for side in ("width", "height"))
    )


def _has_area(annotation: Mapping[str, Any]) -> bool:
    """mmdet drops a box without an area, as it does those below 1 px anyway."""
    area = annotation["area"]
    return _is_positive(area) or (isinstance(area, int | float) and min(annotation["bbox"][2:]) < 1)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def coco_form(truth: GroundTruth, classes: tuple[str, ...], source: Path) -> dict[str, Any]:
    """``truth`` as the content of a COCO json of ``classes``; ``source`` is named in errors.

    What is difficult is marked ``ignore``: mmdet does not learn it, and see `coco_ap`.

    Raises AlignDetError when an image's size is not known, or two classes have one name.
    """
    if (truth.sizes <= 0).any():
        bad = truth.names[int((truth.sizes <= 0).any(axis=1).argmax())]
        raise AlignDetError(f"{source} does not say how large {bad} is (its width and height in px)")
    number = {name: i for i, name in enumerate(classes)}
    if len(number) < len(classes):
        raise AlignDetError(
            f"{source} has two categories of one name: {', '.join(classes)}. Merge or rename them"
        )
    sides = truth.boxes[:, 2] * truth.boxes[:, 3]
    area = np.where(truth.area > 0, truth.area, sides)
    owner = np.repeat(np.arange(len(truth.names)), np.diff(truth.offsets)).tolist()
    annotations: list[dict[str, Any]] = [
        {
            "id": row + 1,
            "image_id": owner[row],
            "category_id": number[truth.classes[truth.labels[row]]],
            "bbox": truth.boxes[row].tolist(),
            "area": float(area[row]),
            "iscrowd": int(truth.crowd[row]),
            **({"ignore": 1} if truth.ignore[row] and not truth.crowd[row] else {}),
        }
        for row in range(len(truth.boxes))
    ]
    images = [
        {"id": i, "file_name": name, "width": int(size[0]), "height": int(size[1])}
        for i, (name, size) in enumerate(zip(truth.names, truth.sizes, strict=True))
    ]
    categories = [{"id": i, "name": name} for name, i in number.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write_coco(truth: GroundTruth, classes: tuple[str, ...], scratch: Path, source: Path) -> Path:
    """`coco_form` in a file, under a name of its own: folders of two sets are often called alike."""
    content = coco_form(truth, classes, source)
    digest = hashlib.sha256(json.dumps([str(source.resolve()), classes]).encode()).hexdigest()[:8]
    target = scratch / f"{source.resolve().stem}-{digest}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(content).encode())
    return target
