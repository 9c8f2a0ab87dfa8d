"""Sets of a VOC folder, as its ``ImageSets/Main/*.txt`` list them: on each line an image's name without extension."""

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from proposals.errors import AlignDetError
from proposals.ground_truth import GroundTruth, read_ground_truth

# Of the folders above a list: Main, ImageSets, and the VOC folder itself.
_FOLDERS_ABOVE = 3


def is_voc_list(path: Path) -> bool:
    """Whether ``path`` is named as a list of images is, not as a COCO json or a folder."""
    return path.suffix == ".txt" and not path.is_dir()


def voc_root(path: Path) -> Path:
    """The VOC folder that the list ``path`` is of. Raises AlignDetError when no folder above it has Annotations."""
    above = path.absolute().parents[:_FOLDERS_ABOVE]
    found = next((folder for folder in above if (folder / "Annotations").is_dir()), None)
    if found is None:
        raise AlignDetError(
            f"{path} is taken for a list of a VOC folder's images, and no folder above it holds Annotations. Put it "
            "into VOC/ImageSets/Main, or name a COCO json or a VOC folder"
        )
    return found


def read_truth(path: Path) -> GroundTruth:
    """Boxes of a COCO json, of a VOC folder, or of those images of one that a list file names.

    A list's classes are those of its whole folder, so that all its lists number them alike. Raises AlignDetError for
    what `read_ground_truth` refuses, and for a list that is empty, or names an image that has no xml.
    """
    if not is_voc_list(path):
        return read_ground_truth(path)
    lines = _lines(path)
    folder = voc_root(path) / "Annotations"
    # In the order of the names, as read_ground_truth reads them.
    stems = [xml.stem for xml in sorted(folder.glob("*.xml"))]
    known = set(stems)
    listed = list(dict.fromkeys(_stem(line, known) for line in lines))
    missing = [stem for stem in listed if stem not in known]
    if missing:
        raise AlignDetError(
            f"{len(missing)} of {len(listed)} images that {path} lists have no xml in {folder}, {missing[0]} first: "
            "a line is an image's name without extension. Add their xmls, or take the lines out"
        )
    return _part(read_ground_truth(folder), np.isin(stems, listed))


def _stem(line: str, known: Container[str]) -> str:
    """The name on a line, which may have spaces. Lists of one class have a second column: does the image show it."""
    name, _, shown = line.rpartition(" ")
    return name.rstrip() if line not in known and shown in ("-1", "0", "1") and name.strip() else line


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise AlignDetError(
            f"{path} cannot be read: {error.strerror}. Name a COCO json, a VOC folder, or a list in its ImageSets/Main"
        ) from error
    except UnicodeDecodeError as error:
        raise AlignDetError(f"{path} is no list of images: it is not UTF-8 text. Write it anew") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise AlignDetError(f"{path} lists no image: give each a line, its name without extension")
    return found


def _part(truth: GroundTruth, kept: npt.NDArray[np.bool_]) -> GroundTruth:
    """The images where ``kept`` [I] is true, with their boxes."""
    counts = np.diff(truth.offsets)
    rows = np.repeat(kept, counts)
    return replace(
        truth,
        names=[name for name, keep in zip(truth.names, kept, strict=True) if keep],
        sizes=truth.sizes[kept],
        offsets=np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int64),
        boxes=truth.boxes[rows],
        area=truth.area[rows],
        ignore=truth.ignore[rows],
        crowd=truth.crowd[rows],
        labels=truth.labels[rows],
    )
