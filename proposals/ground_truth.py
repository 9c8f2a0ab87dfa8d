"""Ground-truth boxes, from COCO json or Pascal VOC xml, as flat arrays."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from proposals.errors import AlignDetError
from proposals.images import has_image_suffix


@dataclass(frozen=True)
class GroundTruth:
    """The annotated boxes of I images, G in all.

    names: [I] file names as written there. sizes: [I, 2] int64 (width, height) px, 0 where unknown.
    offsets: [I + 1] int64, image i owns rows offsets[i]:offsets[i + 1] of the rest. boxes: [G, 4] float64, xywh px
    (as COCO writes them: other forms would round differently), half-open. area: [G] float64 px^2, as annotated.
    ignore: [G] bool, crowd, difficult, or marked ``ignore``; crowd: [G] bool, the first of them. labels: [G] int64
    into ``classes``.
    """

    names: list[str]
    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    area: npt.NDArray[np.float64]
    ignore: npt.NDArray[np.bool_]
    crowd: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read a COCO json file, or a folder of VOC xml files (or one that holds them in ``Annotations``).

    The image of a VOC xml has the xml's name, with the extension of its <filename>. VOC corners are whole pixels
    counted from 1, both inside the box: x1 = xmin - 1, x2 = xmax. Raises AlignDetError when there is nothing of the
    kind or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _read_voc(path)
    try:
        content = json.loads(path.read_bytes())
        return _from_coco(content)
    except OSError as error:
        raise AlignDetError(
            f"{path} cannot be read: {error.strerror}. Name a COCO json or a VOC folder."
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise AlignDetError(
            f"{path} is not a COCO annotation file ({type(error).__name__}: {error}). It needs the lists images, "
            "annotations (bbox, image_id, category_id) and categories."
        ) from error


def read_objects(path: str | Path) -> GroundTruth:
    """As `read_ground_truth`; raises AlignDetError for a file without a single box, too."""
    truth = read_ground_truth(path)
    if not len(truth.boxes):
        raise AlignDetError(
            f"{path} has no box, so there is nothing to compare with: name annotations that have"
        )
    return truth


def _from_coco(content: dict[str, Any]) -> GroundTruth:
    images, annotations = content["images"], content["annotations"]
    for kind in ("images", "categories"):
        require_own_ids(content[kind], kind)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    place = {image["id"]: i for i, image in enumerate(images)}
    label = {category["id"]: i for i, category in enumerate(categories)}
    if annotations and not any(a["image_id"] in place for a in annotations):
        ids = ", ".join(
            repr(next(iter(some))) for some in ([a["image_id"] for a in annotations], place or [None])
        )
        raise ValueError(f"no annotation is of an image that is listed: first image_id and first image {ids}")
    if annotations and not any(a["category_id"] in label for a in annotations):
        raise ValueError(
            f"no annotation is of a category that is listed: the first is of {annotations[0]['category_id']!r}"
        )
    annotations = [a for a in annotations if a["image_id"] in place and a["category_id"] in label]
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64)
    if len(boxes) and boxes.shape[1:] != (4,):
        raise ValueError(f"the bboxes are {boxes.shape}, not four numbers each")
    if not np.isfinite(boxes).all():
        raise ValueError("a bbox is not finite")
    return _grouped(
        names=[str(image["file_name"]) for image in images],
        sizes=[(image.get("width") or 0, image.get("height") or 0) for image in images],
        owner=np.array([place[a["image_id"]] for a in annotations], dtype=np.int64),
        boxes=boxes.reshape(-1, 4),
        area=np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations], dtype=np.float64),
        ignore=np.array([bool(a.get("iscrowd") or a.get("ignore")) for a in annotations], dtype=np.bool_),
        crowd=np.array([bool(a.get("iscrowd")) for a in annotations], dtype=np.bool_),
        labels=np.array([label[a["category_id"]] for a in annotations], dtype=np.int64),
        classes=tuple(str(category["name"]) for category in categories),
    )


def require_own_ids(entries: list[dict[str, Any]], kind: str) -> None:
    """Raise ValueError when two entries have one id, as in files that were joined without numbering them anew."""
    twice = [number for number, count in Counter(entry["id"] for entry in entries).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} ids are of several {kind}, {twice[0]!r} first: number them anew")


def _read_voc(folder: Path) -> GroundTruth:
    inner = folder / "Annotations"
    paths = sorted((inner if inner.is_dir() else folder).glob("*.xml"))
    if not paths:
        raise AlignDetError(
            f"{folder} holds no VOC annotation: neither *.xml nor Annotations/*.xml. "
            "Name that folder or a COCO json."
        )
    roots = [_voc_root(path) for path in paths]
    objects = [(i, found) for i, root in enumerate(roots) for found in root.iter("object")]
    names = [_voc_class(found, paths[i]) for i, found in objects]
    classes = tuple(sorted(set(names)))
    boxes = np.array([_voc_box(found, paths[i]) for i, found in objects], dtype=np.float64).reshape(-1, 4)
    return _grouped(
        names=[_voc_image(root, path) for root, path in zip(roots, paths, strict=True)],
        sizes=[(_voc_side(root, "width"), _voc_side(root, "height")) for root in roots],
        owner=np.array([i for i, _ in objects], dtype=np.int64),
        boxes=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        ignore=np.array([found.findtext("difficult", "0").strip() == "1" for _, found in objects], np.bool_),
        crowd=np.zeros(len(objects), np.bool_),
        labels=np.array([classes.index(name) for name in names], dtype=np.int64),
        classes=classes,
    )


def _voc_root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two: odd encodings
        raise AlignDetError(f"{path} is not a VOC annotation: {error}. Repair or remove it.") from error


def _voc_image(root: ElementTree.Element, path: Path) -> str:
    """The image is the one of the xml's own name: tools leave <filename> as it was when both are renamed."""
    said = root.findtext("filename", "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    return path.stem + (Path(said).suffix if has_image_suffix(said) else ".jpg")


def _voc_class(found: ElementTree.Element, path: Path) -> str:
    name = found.findtext("name", "").strip()
    if not name:
        raise AlignDetError(f"{path} has an object without a <name>, its class. Repair or remove it.")
    return name


def _voc_box(found: ElementTree.Element, path: Path) -> tuple[float, float, float, float]:
    try:
        corners = (found.findtext(f"bndbox/{name}", "") for name in ("xmin", "ymin", "xmax", "ymax"))
        left, top, right, bottom = (float(text) for text in corners)
        if not np.isfinite([left, top, right, bottom]).all():
            raise ValueError("not finite")
    except ValueError as error:
        raise AlignDetError(f"{path} has an object without a numeric bndbox. Repair or remove it.") from error
    return left - 1, top - 1, right - left + 1, bottom - top + 1


def _voc_side(root: ElementTree.Element, name: str) -> int:
    text = root.findtext(f"size/{name}", "0").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _grouped(
    names: list[str],
    sizes: Sequence[tuple[int, int]],
    owner: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64],
    area: npt.NDArray[np.float64],
    ignore: npt.NDArray[np.bool_],
    crowd: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    classes: tuple[str, ...],
) -> GroundTruth:
    # pycocotools walks an image's boxes class by class, and of equal overlaps takes the last: same order, same ties.
    order = np.lexsort((labels, owner))
    counts = np.bincount(owner, minlength=len(names)) if len(names) else np.zeros(0, np.int64)
    return GroundTruth(
        names=names,
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[order],
        area=area[order],
        ignore=ignore[order],
        crowd=crowd[order],
        labels=labels[order],
        classes=classes,
    )
