"""k-NN accuracy of frozen features: how well neighbours name a picture, with nothing trained on the labels.

Each picture is named by the others (leave one out), those cut from the same image excepted. Votes are weighted by
exp(similarity / 0.07), as in Wu et al. 2018 and in SimSiam's own monitor.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_gather, broadcast, get_rank, get_world_size
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.v2 import functional as F

from aligndet_train.distributed import any_rank
from aligndet_train.image_domain.model import ImageDomainModel
from proposals.errors import AlignDetError
from proposals.images import Bgr, decode_bgr, has_image_suffix

_TEMPERATURE = 0.07
_NEIGHBOURS = 20
_SHUFFLES = 5
# At a time: their similarities to all rows are in memory.
_ROWS = 1024
_BATCH = 64
_DECODERS = 8
_MIN_SIDE = 8


class KnnFigures(NamedTuple):
    """Shares of rows. accuracy: named rightly by their neighbours. chance: the same with the labels shuffled over the
    rows, the mean of five seeded shuffles; it lies below the share of the most common class.
    """

    accuracy: float
    chance: float


@torch.no_grad()
def knn_figures(features: Tensor, labels: Tensor, groups: Tensor, k: int = _NEIGHBOURS) -> KnnFigures:
    """How rightly the ``k`` nearest rows of other groups name a row, and what features that tell nothing reach.

    features: [N, D] float. labels, groups: [N] int64; rows of one group never vote for each other. A row without any
    neighbour counts as wrong.
    """
    near, weights = _neighbours(normalize(features.float(), dim=1), groups.to(features.device), k)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(_SHUFFLES)]
    accuracy, *shuffled = (
        _share_named(near, weights, given.to(near.device))
        for given in (labels, *(labels.cpu()[order] for order in orders))
    )
    return KnnFigures(accuracy, sum(shuffled) / _SHUFFLES)


def _neighbours(unit: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of every row of ``unit`` [N, D], [N, k] int64, and their votes' weights, [N, k]."""
    found = []
    for part in _parts(len(unit)):
        similarity = unit[part] @ unit.T
        similarity[groups[part][:, None] == groups[None, :]] = -torch.inf
        found.append(similarity.topk(min(k, len(unit)), dim=1))
    near, weights = torch.cat([top.indices for top in found]), torch.cat([top.values for top in found])
    return near, (weights / _TEMPERATURE).exp()


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))


def _share_named(near: Tensor, weights: Tensor, labels: Tensor) -> float:
    """The share of rows whose heaviest vote among ``labels`` [N] is their own."""
    right, classes = 0, int(labels.max()) + 1
    for part in _parts(len(labels)):
        votes = weights.new_zeros((len(labels[part]), classes))
        votes.scatter_add_(1, labels[near[part]], weights[part])
        right += int(((votes.argmax(dim=1) == labels[part]) & (votes.amax(dim=1) > 0)).sum())
    return right / len(labels)


@dataclass(frozen=True)
class Piece:
    """A labelled picture: an image file, or a box of it, xyxy px. group: of which pieces share an image."""

    path: Path
    box: tuple[int, int, int, int] | None
    label: int
    group: int


class LabelledCrops:
    """Labelled pictures, made into square inputs of ``size`` px."""

    def __init__(self, pieces: Sequence[Piece], classes: Sequence[str], size: int) -> None:
        self.pieces, self.classes, self.size = list(pieces), tuple(classes), size
        self.labels = torch.tensor([piece.label for piece in self.pieces])
        self.groups = torch.tensor([piece.group for piece in self.pieces])

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def summary(self) -> str:
        """How many there are, for people."""
        return f"{len(self):,} pictures of {len(self.classes):,} classes"

    @property
    def fingerprint(self) -> str:
        """16 hex digits: of which pictures, boxes, classes and size these are."""
        rows = [(piece.path.name, piece.box, self.classes[piece.label], piece.group) for piece in self.pieces]
        return hashlib.sha256(repr((self.size, rows)).encode()).hexdigest()[:16]

    def features(self, model: ImageDomainModel, give_up: Callable[[], bool] = lambda: False) -> Tensor:
        """[N, C] float32 on every rank: the model's pooled features in evaluation mode; its mode is restored.

        Every rank must call it, and computes its share: one alone would keep the others waiting beyond NCCL's limit.
        give_up: asked between batches. Raises AlignDetError, on all ranks, when it says yes or a picture cannot be read
        on one of them.
        """
        size = -(-len(self) // get_world_size())
        # A rank beyond the last picture computes that once more, for rows that are cut off.
        start = min(get_rank() * size, len(self) - 1)
        failure: AlignDetError | None = None
        with _with_rank_0s_buffers(model):
            try:
                share = self._features_of(model, self.pieces[start : start + size], give_up)
            except AlignDetError as error:
                failure = error
        if any_rank(failure is not None):
            raise failure or AlignDetError("another rank could not compute its share: see its log")
        rows = share.new_zeros((size, share.shape[1]))
        rows[: len(share)] = share
        return torch.cat(all_gather(rows))[: len(self)]

    @torch.no_grad()
    def _features_of(
        self, model: ImageDomainModel, pieces: Sequence[Piece], give_up: Callable[[], bool]
    ) -> Tensor:
        training, device = model.training, next(model.parameters()).device
        preprocessor: Any = model.data_preprocessor
        rows: list[Tensor] = []
        model.eval()
        try:
            for batch in self._batches(pieces):
                if give_up():
                    raise AlignDetError("the run is asked to stop")
                images = preprocessor.normalised(batch.to(device).float() / 255)
                rows.append(model.features(images).float())
        finally:
            model.train(training)
        return torch.cat(rows)

    def _batches(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """[B, 3, size, size] uint8 RGB."""
        with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
            for start in range(0, len(pieces), _BATCH):
                of_one_image = groupby(pieces[start : start + _BATCH], key=lambda piece: piece.path)
                pictures = pool.map(self._pictures, [list(found) for _, found in of_one_image])
                yield torch.stack([picture for found in pictures for picture in found])

    def _pictures(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Of ``pieces`` of one image, [3, size, size] uint8 RGB each."""
        image = _decoded(pieces[0].path)
        return [self._cut(image, piece) for piece in pieces]

    def _cut(self, image: Bgr, piece: Piece) -> Tensor:
        left, top, right, bottom = piece.box or (0, 0, image.shape[1], image.shape[0])
        cut = np.ascontiguousarray(image[top:bottom, left:right, ::-1])
        if min(cut.shape[:2]) == 0:
            raise AlignDetError(
                f"a box of {piece.path}, {piece.box}, lies beyond its {image.shape[1]} x {image.shape[0]} px: "
                "repair it or take it out"
            )
        rgb = torch.from_numpy(cut).permute(2, 0, 1)
        resized: Tensor = F.resize(rgb, [self.size, self.size], antialias=True)
        return resized


@contextmanager
def _with_rank_0s_buffers(model: ImageDomainModel) -> Iterator[None]:
    """On CPUs each rank has batch statistics of its own (training.with_global_statistics), and rank 0's are saved."""
    buffers = list(model.backbone.buffers())
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        broadcast(buffer)
    try:
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)


def _decoded(path: Path) -> Bgr:
    try:
        return decode_bgr(path.read_bytes()).bgr
    except (OSError, AlignDetError) as error:
        raise AlignDetError(
            f"labelled picture {path} cannot be read: {error}. Repair it or take it out"
        ) from error


def read_labelled(source: Path, images: Path | None, size: int) -> LabelledCrops:
    """A folder with a folder of pictures for every class, or a COCO json, whose boxes become the pictures.

    images: the json's folder of images; None takes the ``images`` folder beside it, or its own folder. Boxes are
    clipped to their image; crowds, and what is then shorter than 8 px, are left out. Raises AlignDetError when there is
    nothing to measure on.
    """
    if source.is_dir():
        if images is not None:
            raise AlignDetError(
                f"--knn-images {images} goes with a COCO json, and {source} is a folder: drop it"
            )
        pieces, classes = _from_folder(source)
    elif source.is_file():
        pieces, classes = _from_coco(source, images)
    else:
        raise AlignDetError(
            f"no labelled pictures at {source}: give a folder of class folders, or a COCO json"
        )
    present = len({piece.label for piece in pieces})
    if present < 2:
        raise AlignDetError(
            f"{source} has {len(pieces)} pictures of {present} classes: k-NN accuracy needs two of each at least"
        )
    missing = [piece.path for piece in pieces if not piece.path.is_file()]
    if missing:
        raise AlignDetError(
            f"{len(missing)} images of {source} are missing, {missing[0]} first: name their folder with --knn-images"
        )
    return LabelledCrops(pieces, classes, size)


def _from_folder(folder: Path) -> tuple[list[Piece], list[str]]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    _refuse_splits(folder, names)
    found = {
        name: [path for path in sorted((folder / name).rglob("*")) if has_image_suffix(path.name)]
        for name in names
    }
    left_out = [f"{folder / name} has none" for name in names if not found[name]]
    left_out += [
        f"{path} is in no class folder" for path in sorted(folder.iterdir()) if has_image_suffix(path.name)
    ]
    if left_out:
        print_log(f"labelled pictures: {len(left_out)} left out, first {left_out[0]}", level=logging.WARNING)
    classes = [name for name in names if found[name]]
    files = [(path, label) for label, name in enumerate(classes) for path in found[name]]
    return [Piece(path, None, label, group) for group, (path, label) in enumerate(files)], classes


def _refuse_splits(folder: Path, names: list[str]) -> None:
    """Raise AlignDetError when two of the folders have class folders of the same names: those of train and val."""
    inside = [{entry.name for entry in (folder / name).iterdir() if entry.is_dir()} for name in names]
    for (first, classes), (second, others) in pairwise(zip(names, inside, strict=True)):
        if len(classes & others) > 1:
            raise AlignDetError(
                f"{first} and {second} in {folder} have folders of the same names, so they are no classes but parts of "
                f"a set: give {folder / second}"
            )


def _from_coco(path: Path, images: Path | None) -> tuple[list[Piece], list[str]]:
    beside = path.parent / "images"
    folder = images or (beside if beside.is_dir() else path.parent)
    try:
        content = json.loads(path.read_bytes())
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        listed = {entry["id"]: entry for entry in content["images"]}
        annotations = sorted(content["annotations"], key=lambda entry: (entry["image_id"], entry["id"]))
        boxes = [(entry, box) for entry in annotations if (box := _box(entry, listed, names)) is not None]
        used = sorted({entry["category_id"] for entry, _ in boxes})
        groups = {image: number for number, image in enumerate(listed)}
        pieces = [
            Piece(
                folder / listed[entry["image_id"]]["file_name"],
                box,
                used.index(entry["category_id"]),
                groups[entry["image_id"]],
            )
            for entry, box in boxes
        ]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise AlignDetError(
            f"{path} is not a COCO json of boxes: {type(error).__name__}: {error}. Repair it, or give class folders"
        ) from error
    return pieces, [names[category] for category in used]


def _box(
    entry: dict[str, Any], listed: dict[Any, dict[str, Any]], names: dict[Any, str]
) -> tuple[int, int, int, int] | None:
    """The annotation's box, xyxy px inside its image; None for a crowd, and when less than 8 px of a side is there.

    Raises ValueError when it has no box, or its image or category is not listed.
    """
    if entry["image_id"] not in listed or entry["category_id"] not in names:
        raise ValueError(
            f"annotation {entry['id']} is of image {entry['image_id']!r} and category {entry['category_id']!r}, "
            "of which one is not listed"
        )
    if len(entry.get("bbox") or ()) != 4:
        raise ValueError(f"annotation {entry['id']} has no box [x, y, width, height]")
    x, y, width, height = map(float, entry["bbox"])
    image = listed[entry["image_id"]]
    # Sizes are COCO's, but some writers leave them out: then what is cut ends where the picture does.
    right, bottom = round(x + width), round(y + height)
    right, bottom = min(right, image.get("width") or right), min(bottom, image.get("height") or bottom)
    box = (max(0, int(x)), max(0, int(y)), right, bottom)
    sides = (width, height, box[2] - box[0], box[3] - box[1])
    return None if entry.get("iscrowd") or entry.get("ignore") or min(sides) < _MIN_SIDE else box
