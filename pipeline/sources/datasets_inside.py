"""Datasets of this program that lie below a source: their tars and tables are made of images, not images to mine."""

from collections.abc import Iterable, Sequence

from proposals.dataset import layout

_SIGNS = (layout.MANIFEST, layout.PLAN)


def is_sign(path: str) -> bool:
    """Whether the folder of ``path`` may be a dataset."""
    return path.rpartition("/")[2] in _SIGNS


def datasets_among(paths: Iterable[str], files: Iterable[str]) -> tuple[str, ...]:
    """Folders that hold one of the ``paths`` that `is_sign` is true of, and one of the ``files`` in shards/, sorted."""
    signed = {path.rpartition("/")[0] for path in paths if is_sign(path)} - {""}
    shards = {file.rpartition("/")[0] for file in files} if signed else set()
    return tuple(sorted(folder for folder in signed if f"{folder}/{layout.SHARDS}" in shards))


def outside(files: Sequence[str], datasets: Sequence[str]) -> list[str]:
    """Those of ``files`` that lie in none of ``datasets``, in their order."""
    inside = tuple(f"{folder}/" for folder in datasets)
    return [file for file in files if not file.startswith(inside)]
