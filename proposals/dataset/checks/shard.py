"""All checks of one shard, put together: its commit record, its files, its rows, its tar."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from proposals.dataset import layout
from proposals.dataset.bounds import MAX_RECORD_BYTES, read_bounded
from proposals.dataset.checks.folder import file_faults
from proposals.dataset.checks.members import edge_faults, tar_faults
from proposals.dataset.checks.references import reference_faults
from proposals.dataset.checks.rows import plan_faults, record_faults, row_faults
from proposals.dataset.files import file_sha256, size_of
from proposals.dataset.manifest import CommitRecord, FileEntry, Manifest, ShardEntry, read_record
from proposals.dataset.seal import seal_state
from proposals.dataset.tables import read_shard, room_fault
from proposals.errors import AlignDetError, MissingExtraError, UnansweredError
from proposals.paths import is_there


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. file: path below the dataset folder. shard: its name, None outside of shards."""

    file: str
    what: str
    shard: str | None = None


@dataclass(frozen=True)
class Owners:
    """Whose the files of a dataset are, to tell what lies in the place of another. Made once for all shards."""

    sizes: frozenset[tuple[str, int]]
    shards: dict[tuple[str, str], str]

    @classmethod
    def of(cls, manifest: Manifest) -> "Owners":
        """Of all tars and tables that ``manifest`` lists."""
        files = [(file, shard.name) for shard in manifest.shards for file in shard.files]
        sizes = frozenset((_kind(file.path), file.bytes) for file, _ in files)
        return cls(sizes, {(_kind(file.path), file.sha256): name for file, name in reversed(files)})

    def of_content(self, path: Path) -> str | None:
        """The first shard that has a file of the content of ``path``, which is hashed only when its size is known."""
        size, kind = size_of(path), _kind(path.name)
        if size is None or (kind, size) not in self.sizes:
            return None
        return self.shards.get((kind, file_sha256(path)))


def check_shard(
    entry: ShardEntry, planned: pa.Table | None, *, root: Path, manifest: Manifest, owners: Owners, deep: bool
) -> list[Problem]:
    """All problems of one shard. planned: its rows of the plan, None when the plan cannot be trusted."""
    path, name = layout.record_path(root, entry.name), entry.name
    record_file = path.relative_to(root).as_posix()
    record, problems = _record(path, record_file, entry, manifest)
    sound = True
    for file in entry.files:
        faults = list(_declared_faults(root, file, entry, owners, deep=deep))
        problems += [Problem(file.path, what, name) for what in faults]
        sound &= not faults or (file is entry.tar and room_fault(root, entry) is None)
    if not sound:
        return problems  # rows that do not come from us prove nothing about the tar either
    try:
        table = read_shard(root, entry) if entry.images else None
        faulty = list(_content_faults(root, entry, table, manifest, deep=deep))
        if record is not None and planned is not None:
            faulty += [(record_file, what) for what in plan_faults(table, planned, record)]
    except (MissingExtraError, UnansweredError):
        raise  # of this machine, or of the way there: it says nothing of the dataset
    except (AlignDetError, ValueError) as error:
        faulty = [(f"{layout.SHARDS}/{name}.parquet", str(error))]
    return problems + [Problem(file, what, name) for file, what in faulty]


def seal_faults(path: Path, limit: int) -> Iterator[str]:
    """Whether a JSON file of at most ``limit`` bytes is as it was sealed; raises AlignDetError when unreadable."""
    state = seal_state(read_bounded(path, limit))
    if state == "absent":
        yield "carries no digest, so nothing proves it: `aligndet merge` writes a copy that has one"
    elif state == "broken":
        yield "its digest does not fit: it was changed or damaged after it was written"


def _record(
    path: Path, file: str, entry: ShardEntry, manifest: Manifest
) -> tuple[CommitRecord | None, list[Problem]]:
    if not is_there(path) or path.is_symlink():
        return None, [Problem(file, "is missing or no plain file", entry.name)]
    try:
        faults = list(seal_faults(path, MAX_RECORD_BYTES))
        record = None if faults else read_record(path)
    except UnansweredError:
        raise
    except AlignDetError as error:
        return None, [Problem(file, str(error), entry.name)]
    if record is not None:
        faults = list(record_faults(record, entry, manifest))
    return record, [Problem(file, what, entry.name) for what in faults]


def _declared_faults(
    root: Path, file: FileEntry, entry: ShardEntry, owners: Owners, *, deep: bool
) -> Iterator[str]:
    # The tars are 99 % of the bytes: without `deep` only their presence and size are looked at.
    for fault in file_faults(root, file, content=deep or file is not entry.tar):
        owner = owners.of_content(root / file.path)
        yield fault + (f": it is that of shard {owner}" if owner not in (None, entry.name) else "")


def _kind(path: str) -> str:
    return path.rpartition(".")[2]


def _content_faults(
    root: Path, entry: ShardEntry, table: pa.Table | None, manifest: Manifest, *, deep: bool
) -> Iterator[tuple[str, str]]:
    if table is None or entry.parquet is None:
        return
    table.validate(full=True)
    yield from ((entry.parquet.path, what) for what in row_faults(table, entry, manifest.recipe.max_pixels))
    if entry.tar is None:
        if deep and manifest.images is not None:
            yield from ((entry.parquet.path, what) for what in reference_faults(manifest.images, table))
        return
    tar = root / entry.tar.path
    if is_there(tar) and not tar.is_symlink():
        look = tar_faults if deep else edge_faults
        yield from ((entry.tar.path, what) for what in look(tar, table))
