"""Where a verb may write."""

import os
import re
from pathlib import Path

from proposals.dataset import layout
from proposals.errors import AlignDetError

# As pathlib leaves it: with one slash. A single letter is a drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def require_outside_datasets(out: Path) -> None:
    """Raise AlignDetError when ``out`` is a URL, or lies inside the folder of a dataset, or of one that is being made.

    Such a folder holds its own files only: others would be overwritten, or be strangers to `aligndet verify`. Links
    are followed.
    """
    if _URL.match(str(out)):
        raise AlignDetError(
            f"{out} is a URL, and this verb writes to this machine. Name a path, and copy it there."
        )
    for folder in Path(os.path.realpath(out)).parents:
        begun = any((folder / name).is_file() for name in (layout.MANIFEST, layout.PLAN))
        if begun and (folder / layout.SHARDS).is_dir():
            raise AlignDetError(
                f"{out} lies inside the dataset {folder}, which must hold nothing but its own files. "
                "Name a place outside it."
            )
