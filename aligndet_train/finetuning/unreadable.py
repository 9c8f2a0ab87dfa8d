"""An image that cannot be decoded ends the run with its name: mmcv raises an assertion, OpenCV names no file at all."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

import cv2

from proposals.errors import AlignDetError

_MMCV = re.compile(r"failed to load image: (.+)")
_OPENCV = "imgcodecs"  # the part of OpenCV that decodes, in the path of its source


@contextmanager
def unreadable_image_named() -> Iterator[None]:
    """Turn what a decoder raises inside into an AlignDetError that names the image.

    Of a loader's process there is only the text of the error; OpenCV's says no name.
    """
    try:
        yield
    except (AssertionError, cv2.error) as error:
        # The last: a traceback before it also quotes the line of code.
        found = _MMCV.findall(str(error))
        if not found and not (isinstance(error, cv2.error) and _OPENCV in str(error)):
            raise
        path = found[-1] if found else _being_read(error)
        raise AlignDetError(
            f"{path or 'an image, which --workers 0 would name,'} cannot be decoded: it is damaged, too large, or no "
            "image. Put a sound copy in its place and run the same command again; or take it out of the labels"
        ) from error


def _being_read(error: BaseException) -> str | None:
    """The path that the innermost of mmdet's transforms was given, of those that ``error`` went through."""
    given = [frame.f_locals.get("results") for frame, _ in walk_tb(error.__traceback__)]
    paths = [results["img_path"] for results in given if isinstance(results, dict) and "img_path" in results]
    return str(paths[-1]) if paths else None
