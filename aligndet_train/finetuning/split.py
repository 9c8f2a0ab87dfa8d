"""Subsets of a labelled set for semi-supervised comparisons (1, 5, 10 % of COCO in the paper)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligndet_train.finetuning.labels import coco_form
from aligndet_train.finetuning.voc_lists import is_voc_list, read_truth
from proposals.dataset.files import write_atomically
from proposals.errors import AlignDetError
from proposals.ground_truth import require_own_ids


@dataclass(frozen=True)
class Subset:
    """One written subset. missing: categories of the whole set that it has no box of."""

    path: Path
    images: int
    boxes: int
    missing: tuple[str, ...]


def choose(image_ids: Sequence[Any], percent: float, seed: int) -> list[Any]:
    """The first ``percent`` of a seeded permutation of the sorted ids, at least one: smaller subsets lie in larger."""
    ordered = sorted(image_ids, key=lambda image_id: (str(type(image_id)), image_id))
    order = np.random.default_rng(seed).permutation(len(ordered))
    count = max(1, math.floor(len(ordered) * percent / 100 + 0.5))
    return [ordered[i] for i in sorted(order[:count].tolist())]


def split(annotations: Path, out: Path, percents: Sequence[float], seeds: Sequence[int]) -> list[Subset]:
    """Write ``STEM.PERCENT@SEED.json`` in ``out`` for every pair; everything but images and boxes stays as it was.

    annotations: a COCO json, a VOC folder or a list of one, whose subsets are COCO jsons, too. Raises AlignDetError
    for a file that is none of these or empty, or a percentage outside (0, 100].
    """
    wrong = [percent for percent in percents if not 0 < percent <= 100]
    if wrong:
        raise AlignDetError(f"{wrong[0]:g} % of a set cannot be taken: give percentages above 0, up to 100")
    try:
        whole = _read(annotations)
        for kind in ("images", "categories"):
            require_own_ids(whole[kind], kind)
        ids = [image["id"] for image in whole["images"]]
        names = {category["id"]: category["name"] for category in whole["categories"]}
        owners = [(box["image_id"], box["category_id"]) for box in whole["annotations"]]
    except OSError as error:
        raise AlignDetError(
            f"{annotations} cannot be read: {error.strerror}. Name a COCO json or a VOC folder"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise AlignDetError(
            f"{annotations} is not a COCO annotation file ({type(error).__name__}: {error})"
        ) from error
    if not ids or not owners:
        raise AlignDetError(f"{annotations} lists no {'box' if ids else 'image'}: there is nothing to split")
    # A VOC folder may be called "." or "VOC.2012".
    stem = annotations.resolve().name if annotations.is_dir() else annotations.stem
    out.mkdir(parents=True, exist_ok=True)
    used = {category for _, category in owners}
    subsets = []
    for percent in percents:
        for seed in seeds:
            chosen = set(choose(ids, percent, seed))
            part = _part(whole, chosen)
            path = out / f"{stem}.{percent:g}@{seed}.json"
            write_atomically(path, json.dumps(part).encode())
            missing = used - {box["category_id"] for box in part["annotations"]}
            lost = tuple(sorted(str(names.get(category, category)) for category in missing))
            subsets.append(Subset(path, len(part["images"]), len(part["annotations"]), lost))
    return subsets


def _read(annotations: Path) -> Any:
    if not annotations.is_dir() and not is_voc_list(annotations):
        return json.loads(annotations.read_bytes())
    truth = read_truth(annotations)
    return coco_form(truth, truth.classes, annotations)


def _part(whole: dict[str, Any], chosen: set[Any]) -> dict[str, Any]:
    return {
        **whole,
        "images": [image for image in whole["images"] if image["id"] in chosen],
        "annotations": [box for box in whole["annotations"] if box["image_id"] in chosen],
    }
