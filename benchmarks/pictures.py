"""Shrunk copies of photographs, for packs that are carried to another machine."""

import sys
from collections.abc import Iterable
from pathlib import Path

import cv2


def require_apart(out: Path, given: Iterable[Path | None]) -> None:
    """End the process when ``out``, where much is written and removed, holds one of ``given`` or is inside of it."""
    for path in (path.resolve() for path in given if path is not None):
        if path.is_relative_to(out.resolve()) or out.resolve().is_relative_to(path):
            sys.exit(f"--out {out} and {path} are one inside of the other: name a new folder beside it")


def shrink(source: Path, target: Path, long_side: int, quality: int) -> float:
    """Write ``source`` with a long side of ``long_side`` px at most; returns the factor.

    Ends the process, naming the picture, where it cannot be read.
    """
    image = cv2.imread(str(source))
    if image is None:
        sys.exit(f"{source} cannot be read as a picture: repair it or take it out")
    factor = min(1.0, long_side / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), small, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return factor
