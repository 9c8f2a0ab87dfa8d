"""COCO json, the form of AlignDet's released proposals: ordinary annotations of one class, or of 256 clusters."""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proposals.convert.json_stream import members
from proposals.convert.stream import (
    CATEGORY,
    CLUSTERS,
    ImageBoxes,
    ImageIds,
    Source,
    fit_float32,
    numbered,
    positions,
)
from proposals.dataset.files import publish, temporary_beside
from proposals.errors import AlignDetError

_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_CLUSTER_NAMES = {f"cluster_{number}": number for number in range(1, CLUSTERS + 1)}

Entry = dict[str, Any]
_Columns = npt.NDArray[np.float64]  # [N, 7]: xywh, rank or nan, cluster, score or nan


def write_coco(source: Source, path: Path, ids: ImageIds = numbered) -> int:
    """Write ``source`` to ``path``, image by image; returns how many boxes.

    bbox is xywh in px with w = x2 - x1, exact to the last bit; ``rank``, and ``sha256`` of images, are extra fields
    that others ignore.
    Categories: `selective_search`, or `cluster_1` .. `cluster_256` when the source carries cluster ids.
    """
    names = list(_CLUSTER_NAMES) if source.clustered else [CATEGORY]
    categories = [{"id": i + 1, "name": name, "supercategory": "proposal"} for i, name in enumerate(names)]
    with temporary_beside(path) as (temporary,):
        # Half a surrogate pair has no UTF-8; Python's escape for it is JSON's, so the name comes back.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f'{{"categories":{_dump(categories)},\n"images":[')
            for place, image in enumerate(source.images()):
                stream.write((",\n" if place else "\n") + _dump(_image(image, ids(place, image.uri))))
            stream.write('],\n"annotations":[')
            count = 0
            for place, image in enumerate(source.images()):
                if len(image.rank):
                    stream.write(",\n" if count else "\n")
                    stream.write(_annotations(image, ids(place, image.uri), count + 1))
                count += len(image.rank)
            stream.write("]}\n")
        publish(temporary, path)
    return count


class CocoSource:
    """The images of a COCO json file; image ids are read as they are.

    Best first are the boxes with the lowest ``rank``; with the highest ``score``, where no box of the image has a
    rank and each has a score; in the file's order otherwise. ``sha256`` of an image, which `write_coco` tells, is
    read, too.

    The list of images is in memory and one image's boxes, or, where the boxes of an image do not stand together, all
    boxes in arrays, about 100 bytes each. Raises AlignDetError when the file is something else, at once or while it
    is walked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._images: dict[Any, Entry] = {}
        self._clusters: dict[Any, int] = {}
        self._scattered = False
        found, started, last = set(), set[Any](), object()
        for name, part in members(path):
            found.add(name)
            self._take(name, part)
            for entry in part if name == "annotations" else ():
                if (key := entry["image_id"]) != last:
                    self._scattered |= key in started
                    started.add(last := key)
        if not found >= {"images", "annotations"}:
            raise AlignDetError(f"{path} is no COCO json: it needs the lists images and annotations.")
        self.clustered = bool(self._clusters)

    def images(self) -> Iterator[ImageBoxes]:
        """Images with boxes in the order of their boxes, then those without any."""
        seen: set[Any] = set()
        for key, columns in self._gathered() if self._scattered else self._runs():
            seen.add(key)
            yield self._image(key, columns)
        yield from (self._image(key, self._columns(key, [])) for key in self._images if key not in seen)

    def _take(self, name: str, part: list[Any]) -> None:
        try:
            for entry in part if name == "images" else ():
                if entry["id"] in self._images:
                    raise ValueError(f"id {entry['id']!r} is there twice")
                self._images[entry["id"]] = _brief(entry)
            if name == "categories":
                named = [(entry["id"], str(entry["name"])) for entry in part]
                self._clusters.update((i, _cluster(n)) for i, n in named if n.startswith("cluster_"))
            for entry in part if name == "annotations" else ():
                hash(entry["image_id"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AlignDetError(
                f"{self._path} is no COCO json: {type(error).__name__} {error} in {name}."
            ) from error

    def _runs(self) -> Iterator[tuple[Any, _Columns]]:
        entries = (entry for name, part in members(self._path) if name == "annotations" for entry in part)
        for key, run in groupby(entries, key=lambda entry: entry.get("image_id")):
            yield key, self._columns(key, list(run))

    def _gathered(self) -> Iterator[tuple[Any, _Columns]]:
        keys, places = list(self._images), {key: i for i, key in enumerate(self._images)}
        runs = [(key, columns) for key, columns in self._runs()]
        counts = [len(columns) for _, columns in runs]
        owner = np.repeat(np.array([places[key] for key, _ in runs], np.int64), counts)
        order, everything = np.argsort(owner, kind="stable"), np.concatenate([columns for _, columns in runs])
        ends = np.cumsum(np.bincount(owner, minlength=len(keys)))
        for key, first, last in zip(keys, [0, *ends[:-1]], ends, strict=True):
            if last > first:
                yield key, everything[order[first:last]]

    def _columns(self, key: Any, run: list[Entry]) -> _Columns:
        if key not in self._images:
            raise AlignDetError(f"{self._path}: the boxes of image id {key!r} belong to no image.")
        try:
            columns = np.zeros((len(run), 7))
            for i, entry in enumerate(run):
                cluster = self._clusters[entry["category_id"]] if self.clustered else 0
                # Of a box that has a rank nobody asks for the score.
                score = entry.get("score", np.nan) if entry.get("rank") is None else np.nan
                columns[i] = (*entry["bbox"], entry.get("rank", np.nan), cluster, score)
            if not all(map(fit_float32, (columns[:, :4], *np.nan_to_num(columns[:, [4, 6]]).T))):
                raise ValueError("a bbox is not four finite numbers, or its rank or score not one")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AlignDetError(
                f"{self._path}: a box of image id {key!r} is broken ({type(error).__name__} {error})."
            ) from error
        return columns

    def _image(self, key: Any, columns: _Columns) -> ImageBoxes:
        if np.isnan(columns[:, 4]).all() and not np.isnan(columns[:, 6]).any():
            columns = columns[np.argsort(-columns[:, 6], kind="stable")]
        columns[:, 4] = np.where(np.isnan(columns[:, 4]), positions(len(columns)), columns[:, 4])
        columns = columns[np.argsort(columns[:, 4], kind="stable")]
        low = columns[:, :2]
        return ImageBoxes(
            uri=self._images[key]["file_name"],
            width=self._images[key]["width"],
            height=self._images[key]["height"],
            boxes=np.concatenate([low, low + columns[:, 2:4]], axis=1).astype(np.float32),
            rank=columns[:, 4].astype(np.float32),
            clusters=columns[:, 5].astype(np.int64) if self.clustered else None,
            sha256=self._images[key].get("sha256"),
        )


def read_image_ids(path: Path) -> dict[str, int]:
    """File name to image id, from a COCO json; raises AlignDetError when it lists no image."""
    found: dict[str, int] = {}
    try:
        for name, part in members(path):
            if name == "images":
                found.update((str(entry["file_name"]), int(entry["id"])) for entry in part)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AlignDetError(
            f"{path} is no COCO json: {type(error).__name__} {error} in images. Each needs id and file_name."
        ) from error
    if not found:
        raise AlignDetError(f"{path} lists no image to take ids from. Name a COCO json.")
    return found


def _cluster(name: str) -> int:
    if name not in _CLUSTER_NAMES:
        raise ValueError(f"{name!r:.40} is none of cluster_1 .. cluster_{CLUSTERS}")
    return _CLUSTER_NAMES[name]


def _brief(entry: Entry) -> Entry:
    size = {name: int(entry.get(name) or 0) for name in ("width", "height")}
    told = entry.get("sha256")
    content = {"sha256": told.lower()} if isinstance(told, str) and _SHA256.fullmatch(told) else {}
    return {"file_name": str(entry["file_name"]), **size, **content}


def _image(image: ImageBoxes, number: int) -> Entry:
    size = {"width": image.width, "height": image.height} if image.width and image.height else {}
    content = {"sha256": image.sha256} if image.sha256 else {}
    return {"id": number, "file_name": image.uri, **size, **content}


def _annotations(image: ImageBoxes, number: int, first: int) -> str:
    corners = image.boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    clusters = np.ones(len(sides), np.int64) if image.clusters is None else image.clusters
    rows = zip(
        np.concatenate([corners[:, :2], sides], axis=1).tolist(),
        sides.prod(axis=1).tolist(),
        image.rank.tolist(),
        clusters.tolist(),
        strict=True,
    )
    return ",\n".join(
        f'{{"id":{first + i},"image_id":{number},"category_id":{cluster},'
        f'"bbox":[{_number(box[0])},{_number(box[1])},{_number(box[2])},{_number(box[3])}],'
        f'"area":{_number(area)},"iscrowd":0,"rank":{_number(rank)}}}'
        for i, (box, area, rank, cluster) in enumerate(rows)
    )


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
