"""Datasets of this program that lie below a source: their tars and tables are made of images, not images to mine."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from proposals.dataset import layout
from proposals.dataset.assemble import read_identity
from proposals.dataset.manifest import read_manifest
from proposals.errors import AlignDetError, NewerFormatError, UnansweredError

_SIGNS = (layout.MANIFEST, layout.PLAN)


def is_sign(path: str) -> bool:
    """Whether the folder of ``path`` may be a dataset."""
    return path.rpartition("/")[2] in _SIGNS


def datasets_among(root: Path, paths: Iterable[str], files: Iterable[str]) -> tuple[str, ...]:
    """Folders below ``root``, sorted, that are datasets, finished or not, and hold some of the ``files`` in shards/.

    paths: of files below ``root``; those that `is_sign` is true of are read.
    """
    signed = {path.rpartition("/")[0] for path in paths if is_sign(path)} - {""}
    shards = {file.rpartition("/")[0] for file in files} if signed else set()
    likely = (folder for folder in signed if f"{folder}/{layout.SHARDS}" in shards)
    return tuple(sorted(folder for folder in likely if _is_dataset(root / folder)))


def _is_dataset(folder: Path) -> bool:
    # Other programs call files so, too.
    for read in (lambda: read_manifest(folder), lambda: read_identity(folder / layout.PLAN)):
        try:
            read()
        except NewerFormatError:
            return True
        except UnansweredError:
            raise
        except AlignDetError:
            continue
        return True
    return False


def outside(files: Sequence[str], datasets: Sequence[str]) -> list[str]:
    """Those of ``files`` that lie in none of ``datasets``, in their order."""
    inside = tuple(f"{folder}/" for folder in datasets)
    return [file for file in files if not file.startswith(inside)]
