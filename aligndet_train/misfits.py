"""A config whose parts do not fit each other shows it in the first step only, by an error that names none of them."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.runner import Runner

from proposals.errors import AlignDetError

# Of torch's layers that are given another number of channels than they were made for.
_SHAPES = re.compile(r"expected input\[.*\] to have \d+ channels|mat1 and mat2 shapes cannot be multiplied")


@contextmanager
def misfits_blamed(runner: Runner) -> Iterator[None]:
    """Turn what layers, and mmdet's own checks in them, raise in ``runner``'s first step for inputs they were not made
    for into an AlignDetError."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        where = traceback.extract_tb(error.__traceback__)
        checked = isinstance(error, AssertionError) and _is_of_a_layer(where[-1])
        if runner.iter or not (checked or _SHAPES.search(str(error))):
            raise
        layer = next(filter(_is_of_a_layer, reversed(where)), where[-1])
        told = str(error) or layer.line
        raise AlignDetError(
            f"the parts of the config do not fit each other: {told} ({Path(layer.filename).name}, {layer.name}). "
            "Mostly the backbone was changed, and neck.in_channels or the head's strides and in_channels were not"
        ) from error


def _is_of_a_layer(frame: traceback.FrameSummary) -> bool:
    return "/mmdet/models/" in Path(frame.filename).as_posix()
