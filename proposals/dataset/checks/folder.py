"""The files of a dataset folder: all there, of the declared size and content, and none besides."""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from proposals.dataset import layout
from proposals.dataset.assemble import plan_groups, read_identity
from proposals.dataset.bounds import MAX_POINTER_BYTES, POINTER_HINT, is_pointer
from proposals.dataset.files import NotListedError, file_sha256, files_below, read_range
from proposals.dataset.manifest import FileEntry, Manifest
from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import is_remote, walk_folders
from proposals.remote_files import info_of

# What a hub's repository has besides the dataset: its card, and what git and the hub's client keep of their own.
_REPOSITORY_FILES = {"README.md", "croissant.json", ".gitattributes"}
_REPOSITORY_FOLDERS = {".git", ".cache/huggingface"}
_SHARD_FILE = re.compile(rf"{layout.SHARDS}/([0-9]{{5,9}})\.(?:tar|parquet|json)")
# What adding images does not change.
_THE_SAME = ("recipe", "images", "images_per_shard")
_UNEXPECTED = "is unexpected: dataset.json does not name it"
_NO_PLAN = "is unexpected: it is no plan that adds images to this dataset. Delete it"


@dataclass(frozen=True)
class Strangers:
    """Files that dataset.json does not name, as paths below the folder.

    unexpected: nobody knows why they are there; each with what is wrong with it. unfinished: left or still being
    written by `mine` or `consolidate`; readers ignore them. listed: False where a web server does not show which
    files there are.
    """

    unexpected: tuple[tuple[str, str], ...]
    unfinished: tuple[str, ...]
    listed: bool = True


def expected_paths(manifest: Manifest) -> set[str]:
    """Every path below the folder that a dataset with ``manifest`` has."""
    entries = [manifest.plan, manifest.rejected, *manifest.consolidated]
    entries += [entry for shard in manifest.shards for entry in shard.files]
    records = {f"{layout.SHARDS}/{shard.name}.json" for shard in manifest.shards}
    return {layout.MANIFEST, *records, *(entry.path for entry in entries)}


def strangers(root: Path, manifest: Manifest) -> Strangers:
    """What lies in ``root`` and is not part of the dataset; links and devices count wherever they are."""
    try:
        found = dict(sorted(_walk(root)))
    except NotListedError:
        found = {}
    if is_remote(root) and not _is_a_listing(set(found), manifest):
        return Strangers((), (), listed=False)
    named, known = expected_paths(manifest), expected_paths(manifest) | _REPOSITORY_FILES
    shards = _planned_shards(root, manifest) if stat.S_ISREG(found.get(layout.APPEND, 0)) else None
    unexpected: list[tuple[str, str]] = []
    unfinished: list[str] = []
    for path, mode in found.items():
        plain = stat.S_ISREG(mode)
        if plain and (path in known or _is_checked_elsewhere(root, path)):
            continue
        if path in named and path != layout.MANIFEST:
            continue  # what it is instead is said where it is checked
        if plain and _is_unfinished(root, path, manifest, shards):
            unfinished.append(path)
        else:
            unexpected.append((path, _NO_PLAN if plain and path == layout.APPEND else _UNEXPECTED))
    return Strangers(tuple(unexpected), tuple(unfinished))


def _is_unfinished(root: Path, path: str, manifest: Manifest, shards: int | None) -> bool:
    """Whether a run left the plain file ``path``. shards: how many there will be, by a plan that adds images."""
    if layout.is_temporary(path):
        return True
    if path.startswith(f"{layout.CONSOLIDATED}/"):
        return not manifest.consolidated
    if path.startswith(f"{layout.CLUSTERS}/"):
        return True
    return shards is not None and (path == layout.APPEND or _is_added(path, manifest, shards))


def _planned_shards(root: Path, manifest: Manifest) -> int | None:
    """How many shards there are once images are added; None when append.parquet is no plan of this dataset."""
    path = root / layout.APPEND
    try:
        identity = read_identity(path)
        if any(getattr(identity, name) != getattr(manifest, name) for name in _THE_SAME):
            return None
        rows, last = 0, 0
        for group in plan_groups(path):
            rows += group.num_rows
            last = max(last, pc.max(group.column("shard")).as_py() or 0)
    except UnansweredError:
        raise
    except AlignDetError:
        return None
    return last + 1 if rows == identity.source.images else None


def _is_a_listing(found: set[str], manifest: Manifest) -> bool:
    """Whether ``found`` is what is in the folder: a web server may show nothing, or a page about something else."""
    shards = any(path.startswith(f"{layout.SHARDS}/") for path in found)
    return layout.MANIFEST in found and (shards or not manifest.shards)


def file_faults(root: Path, entry: FileEntry, *, content: bool) -> Iterator[str]:
    """What is wrong with one declared file: missing, no plain file, another size; with ``content`` its sha256."""
    path = root / entry.path
    try:
        mode, size = _mode_and_size(path)
    except OSError:
        yield "is missing"
        return
    if not stat.S_ISREG(mode):
        yield f"is a {_kind(mode)}, not a file"
    elif size not in (None, entry.bytes):
        yield f"has {size} bytes, dataset.json says {entry.bytes}{_of_a_pointer(path, size)}"
    elif content and (found := file_sha256(path, entry.bytes)) != entry.sha256:
        yield f"has sha256 {found[:16]}..., dataset.json says {entry.sha256[:16]}..."


def _of_a_pointer(path: Path, size: int | None) -> str:
    small = size is not None and size <= MAX_POINTER_BYTES
    return f" ({POINTER_HINT})" if small and is_pointer(read_range(path, 0, MAX_POINTER_BYTES)) else ""


def _mode_and_size(path: Path) -> tuple[int, int | None]:
    if not is_remote(path):
        status = path.lstat()
        return status.st_mode, status.st_size
    info = info_of(path)
    return (stat.S_IFREG if info["type"] == "file" else stat.S_IFDIR), info["size"]


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    if is_remote(root):
        yield from ((path, stat.S_IFREG) for path in files_below(root))
        return
    for folder, folders, files in walk_folders(root):
        below = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not _is_repository_folder(root, below / name)]
        for name in (*folders, *files):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode) or not any(path.iterdir()):
                yield path.relative_to(root).as_posix(), mode


def _is_checked_elsewhere(root: Path, path: str) -> bool:
    """Features and clusters: checks/features.py knows what belongs to them."""
    if path == layout.CLUSTERS_RECORD or path.startswith(f"{layout.REGIONS}/"):
        return layout.TEMPORARY_MARK not in path
    return path.startswith(f"{layout.CLUSTERS}/") and (root / layout.CLUSTERS_RECORD).is_file()


def _is_repository_folder(root: Path, path: Path) -> bool:
    return path.as_posix() in _REPOSITORY_FOLDERS and not (root / path).is_symlink()


def _is_added(path: str, manifest: Manifest, shards: int) -> bool:
    found = _SHARD_FILE.fullmatch(path)
    return found is not None and len(manifest.shards) <= int(found[1]) < shards


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
    return kinds.get(stat.S_IFMT(mode), "device or socket")
