"""A folder that becomes a dataset in one go: when that fails, nothing of it stays in the way of the next try."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from proposals.dataset import layout
from proposals.dataset.files import remove_leftovers
from proposals.errors import AlignDetError

CARD, CROISSANT = "README.md", "croissant.json"
_FILES = (layout.MANIFEST, layout.REJECTED, layout.PLAN, layout.CLUSTERS_RECORD, CARD, CROISSANT)
_FOLDERS = (layout.CONSOLIDATED, layout.CLUSTERS, layout.SHARDS)


@contextmanager
def new_dataset_folder(root: Path) -> Iterator[None]:
    """Make ``root``, with its folder of shards, to be filled inside the block; an exception there empties it again.

    Raises AlignDetError when ``root`` is there and is no empty folder (saying what to delete when a conversion that
    was killed left it), or cannot be written.
    """
    _refuse_used(root)
    made = not root.exists()
    try:
        # Not exist_ok: of two conversions into one folder only the first may go on, and clean up.
        root.mkdir(parents=True, exist_ok=True)
        (root / layout.SHARDS).mkdir()
    except OSError as error:
        raise _unwritable(root, error) from error
    try:
        yield
    except BaseException as error:
        _empty(root, made)
        if isinstance(error, OSError):
            raise _unwritable(root, error) from error
        raise


def _empty(root: Path, made: bool) -> None:
    for name in _FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in _FILES:
        (root / name).unlink(missing_ok=True)
    remove_leftovers(root)
    if made:
        with suppress(OSError):  # somebody else put a file there meanwhile
            root.rmdir()


def _refuse_used(root: Path) -> None:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if (root / layout.SHARDS).is_dir() and not (root / layout.MANIFEST).exists():
        left = [str(root / name) for name in (*_FOLDERS, *_FILES) if (root / name).exists()]
        raise AlignDetError(
            f"{root} holds the beginning of a dataset. If it is of a conversion that was stopped, delete "
            f"{', '.join(left)} and run the same command again; if not, choose a new folder."
        )
    raise AlignDetError(f"{root} is not empty. Choose a new folder for the dataset.")


def _unwritable(root: Path, error: OSError) -> AlignDetError:
    return AlignDetError(f"{root} cannot be written: {error.strerror or error}. Choose another folder.")
