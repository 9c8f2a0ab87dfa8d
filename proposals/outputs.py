"""Where a verb may write."""

import os
from pathlib import Path

from proposals.dataset import layout
from proposals.errors import AlignDetError


def require_outside_datasets(out: Path) -> None:
    """Raise AlignDetError when ``out`` lies inside the folder of a dataset, or of one that is being made.

    Such a folder holds its own files only: others would be overwritten, or be strangers to `aligndet verify`. Links
    are followed.
    """
    for folder in Path(os.path.realpath(out)).parents:
        begun = any((folder / name).is_file() for name in (layout.MANIFEST, layout.PLAN))
        if begun and (folder / layout.SHARDS).is_dir():
            raise AlignDetError(
                f"{out} lies inside the dataset {folder}, which must hold nothing but its own files. "
                "Name a place outside it."
            )
