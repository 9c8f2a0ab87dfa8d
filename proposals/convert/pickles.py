"""detectron2 and mmdet proposal files. Both are pickles: written as a stream, read only when that was asked for."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from proposals.convert.stream import ImageBoxes, ImageIds, Source, fit_float32, numbered
from proposals.convert.unpickle import load_arrays
from proposals.dataset.files import publish, temporary_beside
from proposals.errors import AlignDetError

_XYXY_ABS, _XYWH_ABS = 0, 1  # detectron2's BoxMode


def write_detectron2(source: Source, path: Path, ids: ImageIds = numbered) -> int:
    """Write ``source`` as detectron2 reads it: ids, boxes (XYXY_ABS) and objectness_logits, the negated rank.

    ids must be the dataset's own image ids there. Returns how many boxes; the source is walked three times.
    """
    logits = (-image.rank for image in source.images())
    boxes = (np.ascontiguousarray(image.boxes) for image in source.images())
    numbers = (ids(place, image.uri) for place, image in enumerate(source.images()))
    content = {
        "ids": _Listed(numbers),
        "boxes": _Listed(boxes),
        "objectness_logits": (counted := _Listed(logits, len)),
        "bbox_mode": _XYXY_ABS,
    }
    _write(content, path)
    return counted.total


def write_mmdet(source: Source, path: Path, folder: str | None = None) -> int:
    """Write ``source`` as mmdet's ``proposal_file``: ``folder/name`` to bboxes (xyxy px) and scores, the negated rank.

    mmdet's key is an image's name below its folder. folder: that folder's name, for images without one.
    Returns how many boxes. Raises AlignDetError when a key has no folder or two images have the same.
    """
    keys: set[str] = set()
    total = 0

    def items() -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal total
        for image in source.images():
            key = _mmdet_key(image.uri, folder)
            if key in keys:
                raise AlignDetError(
                    f"two images would be {key!r} in mmdet's file, which keeps one folder level."
                )
            keys.add(key)
            total += len(image.rank)
            yield key, {"bboxes": np.ascontiguousarray(image.boxes), "scores": -image.rank}

    _write(_Mapped(items()), path)
    return total


class PickleSource:
    """The images of a detectron2 or mmdet proposal file; all of it is in memory. names: image id to file name.

    Only plain containers and numpy arrays are unpickled: a file that asks for any other class or function is
    refused with AlignDetError, and so is one that is neither form, or whose bbox_mode is neither XYXY_ABS nor XYWH_ABS.
    """

    clustered = False

    def __init__(self, path: Path, names: Mapping[str, str] | None = None) -> None:
        self._path, self._names = path, names or {}
        self._content = load_arrays(path)
        if not isinstance(self._content, dict):
            raise AlignDetError(
                f"{path} holds a {type(self._content).__name__}, not detectron2's or mmdet's dict."
            )
        self._mode = _box_mode(path, self._content)

    def images(self) -> Iterator[ImageBoxes]:
        """Every image; its uri is folder/name for mmdet, for detectron2 what ``names`` calls its id, or the id."""
        try:
            if "boxes" in self._content:
                logits = self._content.get("objectness_logits", self._content.get("scores"))
                numbers = self._content.get("ids", self._content.get("indexes"))
                for number, boxes, scores in zip(numbers, self._content["boxes"], logits, strict=True):
                    name = _name(number)
                    yield _sorted(self._names.get(name, name), boxes, scores, self._mode)
            else:
                for key, found in self._content.items():
                    yield _sorted(_name(key), found["bboxes"], found["scores"])
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise AlignDetError(
                f"{self._path} is neither detectron2's nor mmdet's form ({type(error).__name__} {error})."
            ) from error


class _Listed:
    """Pickles as a plain list whose items are made while it is written."""

    def __init__(self, items: Iterator[Any], count: Callable[[Any], int] | None = None) -> None:
        self._items, self._count, self.total = items, count, 0

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (), None, self._counted()

    def _counted(self) -> Iterator[Any]:
        for item in self._items:
            self.total += self._count(item) if self._count else 0
            yield item


class _Mapped:
    """Pickles as a plain dict whose items are made while it is written."""

    def __init__(self, items: Iterator[tuple[str, Any]]) -> None:
        self._items = items

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (), None, None, self._items


def _write(content: Any, path: Path) -> None:
    with temporary_beside(path) as (temporary,):
        with temporary.open("wb") as stream:
            _dump(content, stream)
        publish(temporary, path)


def _dump(content: Any, stream: BinaryIO) -> None:
    pickler = pickle.Pickler(stream, protocol=4)
    pickler.fast = True  # without the memo, which would keep every array alive until the end
    pickler.dump(content)


def _mmdet_key(uri: str, folder: str | None) -> str:
    path = PurePosixPath(uri)
    parent = path.parent.name or folder
    if not parent:
        raise AlignDetError(
            f"{uri} lies in no folder, and mmdet looks proposals up by folder/name. "
            "Name the images' folder: --folder train2017"
        )
    return f"{parent}/{path.name}"


def _box_mode(path: Path, content: Mapping[Any, Any]) -> int:
    mode = content.get("bbox_mode", _XYXY_ABS) if "boxes" in content else _XYXY_ABS
    if isinstance(mode, (int, np.integer)) and mode in (_XYXY_ABS, _XYWH_ABS):
        return int(mode)
    raise AlignDetError(
        f"{path} has boxes of a bbox_mode other than 0 (XYXY_ABS) and 1 (XYWH_ABS), plain ints. Write them as 0."
    )


def _sorted(uri: str, boxes: Any, scores: Any, mode: int = _XYXY_ABS) -> ImageBoxes:
    corners = _numbers(boxes).reshape(-1, 4)
    values = _numbers(scores).reshape(len(corners))
    if not (fit_float32(corners.astype(np.float64)) and fit_float32(values.astype(np.float64))):
        raise ValueError(f"a box or score of {uri!r} is not finite")
    if mode == _XYWH_ABS:
        corners[:, 2:] += corners[:, :2]
    order = np.argsort(-values, kind="stable")
    return ImageBoxes(uri, 0, 0, corners[order], -values[order])


def _name(value: Any) -> str:
    if not isinstance(value, (str, int, np.integer)):
        raise TypeError(f"an image is called by a {type(value).__name__}")
    return str(value)


def _numbers(values: Any) -> npt.NDArray[np.float32]:
    if isinstance(values, list) and any(isinstance(row, list) and not _is_flat(row) for row in values):
        raise TypeError("lists in lists in lists")  # one list in many places would be as many copies
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"numbers are of type {array.dtype}")
    return array.astype(np.float32)


def _is_flat(row: list[Any]) -> bool:
    return len(row) <= 5 and all(isinstance(value, (int, float, np.number)) for value in row)
