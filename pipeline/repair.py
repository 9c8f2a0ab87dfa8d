"""Repairing a dataset: what is damaged is made again, and replaced only by the very bytes that were committed."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline.image_records import Refusal
from pipeline.limits import GIBIBYTES, Limits, limits_of
from pipeline.plan import PlanFile, ShardTask, tasks
from pipeline.shard_task import Work, mine_shard
from pipeline.sources import FolderSource, SourceUnavailableError
from proposals.dataset import layout
from proposals.dataset.assemble import (
    PLAN_SCHEMA,
    assemble,
    plan_bytes,
    read_identity,
    read_rejected,
    rejected_bytes,
)
from proposals.dataset.checks.folder import expected_paths, file_faults
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import make_folder, publish, temporary_name, write_atomically
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    CommitRecord,
    FileEntry,
    Manifest,
    Rejection,
    ShardEntry,
    is_newer,
    library_versions,
    read_manifest,
    read_record,
    refuse_newer,
    write_model,
)
from proposals.dataset.tables import read_shard
from proposals.dataset.verify import Report, verify_dataset
from proposals.errors import AlignDetError, NewerFormatError
from proposals.fetch import as_spelled
from proposals.paths import local_only, scheme_of

# Kinds of sources whose images are no files of their own.
_CONTAINED = frozenset({"webdataset", "parquet", "arrow"})

# Reasons that limits and machines decide, and what to do about them.
_OF_THIS_MACHINE = {
    "timeout": "Give a longer --image-timeout, at least the one that it was mined with",
    "out_of_memory": "Give more --image-memory, at least as much as it was mined with",
    "crashed": "Give more --image-memory, or try on another machine",
}

OnRepair = Callable[[str], None]


def repair_dataset(
    root: Path,
    folders: Sequence[Path],
    workers: int,
    on_repair: OnRepair,
    seconds: float | None = None,
    gibibytes: float = GIBIBYTES,
) -> Report:
    """Repair what `verify_dataset` finds in ``root`` and return what it finds afterwards.

    folders: where the images are. seconds, gibibytes: that one image may take, see `limits_of`. ``on_repair`` is told
    each file that was replaced. Files that do not belong to the dataset are left alone; a proposals.zarr that
    dataset.json does not list is written again and listed. Raises AlignDetError when something cannot be made again,
    saying why; NewerFormatError, with nothing touched, when a newer format wrote a part of it.
    """
    root = local_only(root, "verify --repair")
    _require_no_other(root / layout.SHARDS)
    report = _with_manifest(root, workers, on_repair)
    manifest = read_manifest(root)
    if report.problems:
        refuse_newer(root / layout.MANIFEST, manifest.format_version, "repairing")
    _refuse_folders(root, manifest)
    if _has(report, layout.PLAN):
        _replace(root, manifest.plan, _rebuilt_plan(root, manifest, folders))
        on_repair(layout.PLAN)
    if report.damaged_shards:
        limits = limits_of(manifest.recipe, "fast", seconds, gibibytes)
        _mine_again(root, manifest, report.damaged_shards, folders, limits, on_repair)
    if _has(report, layout.REJECTED):
        records = [read_record(layout.record_path(root, shard.name)) for shard in manifest.shards]
        _replace(root, manifest.rejected, rejected_bytes(records))
        on_repair(layout.REJECTED)
    rebuilt = _rebuild_arrays(root, manifest, report, workers)
    if rebuilt:
        on_repair(f"{layout.CONSOLIDATED} (all of it is written again)")
    return verify_dataset(root, deep=True, workers=workers) if report.problems or rebuilt else report


def _with_manifest(root: Path, workers: int, on_repair: OnRepair) -> Report:
    if (root / layout.MANIFEST).is_file() or not (root / layout.PLAN).is_file():
        report = verify_dataset(root, deep=True, workers=workers)
        if not _has(report, layout.MANIFEST):
            return report
    _rebuild_manifest(root)
    on_repair(layout.MANIFEST)
    return verify_dataset(root, deep=True, workers=workers)


def _rebuild_arrays(root: Path, manifest: Manifest, report: Report, workers: int) -> bool:
    # A group that is not listed lost its list with an older dataset.json, or was never committed: either way the
    # tables say what it must hold.
    unlisted = not manifest.consolidated and _is_folder(root / layout.CONSOLIDATED)
    lost = unlisted and manifest.totals.images > 0 and not is_newer(manifest.format_version)
    listed = {layout.CONSOLIDATED, *(entry.path for entry in manifest.consolidated)}
    damaged = bool(manifest.consolidated) and any(problem.file in listed for problem in report.problems)
    return (lost or damaged) and consolidate(root, workers)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _require_no_other(shards: Path) -> None:
    """Raise AlignDetError when there is something else than a folder in the place of ``shards``."""
    if shards.is_symlink():
        raise AlignDetError(
            f"{shards} is a link, and nothing is written to where it leads. Put the folder itself in its "
            "place, then repair"
        )
    if shards.exists() and not shards.is_dir():
        raise AlignDetError(f"{shards} is a file, where a folder should be. Move it away and repair again.")


def _refuse_folders(root: Path, manifest: Manifest) -> None:
    """Before an image is mined again: no file takes the place of a folder, whose content may be somebody's only one."""
    for path in sorted(expected_paths(manifest)):
        if not path.startswith(f"{layout.CONSOLIDATED}/"):  # of which the whole group is replaced
            _refuse_folder(root / path)


def _refuse_folder(path: Path) -> None:
    if _is_folder(path):
        raise AlignDetError(f"{path} is a folder, where a file should be. Move it away and repair again.")


def _has(report: Report, file: str) -> bool:
    return any(problem.file == file for problem in report.problems)


def _rebuild_manifest(root: Path) -> None:
    _refuse_folder(root / layout.MANIFEST)
    try:
        identity = read_identity(root / layout.PLAN)
        records = [_record(root, task) for task in _every_task(PlanFile(root / layout.PLAN))]
    except NewerFormatError:
        raise
    except AlignDetError as error:
        raise AlignDetError(
            f"{layout.MANIFEST} of {root} cannot be rebuilt, what proves it is missing or damaged too: {error} "
            f"If the folder is of a job that never ended, run that job again; if not, mine into a new folder."
        ) from error
    assemble(root, identity, records)


def _every_task(plan: PlanFile) -> Iterator[ShardTask]:
    """The tasks of ``plan``, and an empty one for each shard that a retry left without an image."""
    number = 0
    for task in tasks(plan):
        while layout.shard_name(number) != task.name:
            yield ShardTask(layout.shard_name(number), (), ())
            number += 1
        yield task
        number += 1


def _record(root: Path, task: ShardTask) -> CommitRecord:
    path = layout.record_path(root, task.name)
    record = read_record(path)
    refuse_newer(path, record.format_version, "repairing")
    told = record.shard.name, record.shard.images + len(record.rejected)
    if told != (task.name, len(task)):
        raise AlignDetError(f"{path} tells of shard {told[0]} with {told[1]} images, not of {len(task)}.")
    return record


def _rebuilt_plan(root: Path, manifest: Manifest, folders: Sequence[Path]) -> bytes:
    # A plan lists the images of each shard by uri; rows know their sizes, the source those of rejected images.
    rows = [
        row
        for number, shard in enumerate(manifest.shards)
        for row in _shard_plan(root, number, shard, folders)
    ]
    return plan_bytes(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA), JobIdentity.of(manifest))


def _shard_plan(
    root: Path, number: int, shard: ShardEntry, folders: Sequence[Path]
) -> list[dict[str, object]]:
    try:
        table = read_shard(root, shard).select(["key", "uri", "tar_size"]).to_pylist() if shard.images else []
        record = read_record(layout.record_path(root, shard.name))
    except AlignDetError as error:
        raise AlignDetError(
            f"{layout.PLAN} of {root} cannot be rebuilt while shard {shard.name} is damaged too: {error}"
        ) from error
    sizes = {(row["key"], row["uri"]): row["tar_size"] for row in table}
    sizes |= {(row.key, row.uri): _size(row.uri, folders) for row in record.rejected}
    return [
        {"shard": number, "key": key, "uri": uri, "size": size}
        for (key, uri), size in sorted(sizes.items(), key=lambda item: item[0][1])
    ]


def _size(uri: str, folders: Sequence[Path]) -> int:
    found = (_size_below(folder, uri) for folder in folders)
    return next((size for size in found if size >= 0), -1)


def _size_below(folder: Path, uri: str) -> int:
    """Of the file that ``uri`` names below ``folder``; -1 where there is none, or none can have that name."""
    try:
        path = Path(as_spelled(str(folder / uri)))
        return path.stat().st_size if path.is_file() else -1
    except (OSError, ValueError):
        return -1


def _mine_again(
    root: Path,
    manifest: Manifest,
    names: Sequence[str],
    folders: Sequence[Path],
    limits: Limits,
    on_repair: OnRepair,
) -> None:
    if manifest.source.imported:
        raise AlignDetError(
            f"shards {', '.join(names)} of {root} hold boxes that were imported, not mined, so they cannot be mined "
            "again. Import them again: aligndet convert FILE NEW_FOLDER --to dataset --images FOLDER"
        )
    if manifest.source.kind in _CONTAINED:
        raise AlignDetError(
            f"shards {', '.join(names)} of {root} were mined from {manifest.source.kind}, and --repair reads image "
            "files only. Mine the same source into a new folder: its other shards come out the same, byte for byte."
        )
    if not folders:
        raise AlignDetError(
            f"shards {', '.join(names)} of {root} must be mined again. Say where the images are: --images FOLDER"
        )
    job = read_identity(root / layout.PLAN).fingerprint()
    planned = {task.name: task for task in _every_task(PlanFile(root / layout.PLAN))}
    entries = {shard.name: shard for shard in manifest.shards}
    with _staging(root) as staging:
        for name in names:
            task = planned[name]
            source = FolderSource(_folder_of(task, folders))
            rejected = _committed_rejections(root, manifest, entries[name], task)
            # What was rejected then may be readable now, but it is no part of what was committed.
            refused = {
                row.key: Refusal(row.stage, row.reason, row.detail, row.traceback_hash)
                for row in rejected or ()
            }
            embed = manifest.images is None
            # Before sizes were compared, images were committed that had changed since they were listed.
            work = Work(source, staging, manifest.recipe, job, limits=limits, embed=embed, as_listed=False)
            try:
                record = mine_shard(task, work, quarantine=refused)
            except SourceUnavailableError as error:
                raise AlignDetError(
                    f"shard {name} of {root} could not be mined again: {error}. What was repaired before stays so. "
                    "Give --images the folder that they were mined from, and run the same command again."
                ) from error
            _require_same(record, rejected, entries[name], manifest, source.root)
            if rejected is not None:
                again = record.model_copy(update={"rejected": rejected})
                write_model(layout.record_path(staging, name), again)
            files = [*(entry.path for entry in record.shard.files), f"{layout.SHARDS}/{name}.json"]
            make_folder(root / layout.SHARDS)
            for file in files:
                publish(staging / file, root / file)
            on_repair(", ".join(files))


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    staging = temporary_name(root / "repair")
    (staging / layout.SHARDS).mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging)


def _folder_of(task: ShardTask, folders: Sequence[Path]) -> Path:
    # Not all need to exist: an image may have been rejected because it was missing.
    return max(folders, key=lambda folder: sum(_size_below(folder, uri) >= 0 for uri in task.uris)).resolve()


def _committed_rejections(
    root: Path, manifest: Manifest, entry: ShardEntry, task: ShardTask
) -> tuple[Rejection, ...] | None:
    """The rejected images of a shard as they were committed; None when both files that tell of them are damaged.

    Why an image is rejected may depend on the machine and on the day: what is mined again says it anew.
    """
    if not list(file_faults(root, manifest.rejected, content=True)):
        rows, keys = read_rejected(root, manifest).to_pylist(), frozenset(task.keys)
        return tuple(Rejection(**row) for row in rows if row["key"] in keys)
    try:
        record = read_record(layout.record_path(root, entry.name))
    except AlignDetError:
        return None
    return record.rejected if record.shard == entry else None


def _require_same(
    record: CommitRecord,
    rejected: tuple[Rejection, ...] | None,
    entry: ShardEntry,
    manifest: Manifest,
    source: Path,
) -> None:
    known = {row.key for row in rejected or ()}
    same = rejected is None or known == {row.key for row in record.rejected}
    if record.shard == entry and same:
        return
    lost = [row for row in record.rejected if row.key not in known]
    shown = f"; rejected: {', '.join(row.uri for row in lost[:3])}" if lost else ""
    raise AlignDetError(
        f"shard {entry.name} mined again from {source} is not what was committed: {_cause(lost, manifest)}{shown}. "
        "Nothing was replaced by it. Give the original images and libraries, or mine into a new folder."
    )


def _cause(lost: Sequence[Rejection], manifest: Manifest) -> str:
    """Why a shard may have come out otherwise. lost: images that were not rejected when it was committed."""
    elsewhere = next((row.uri for row in lost if scheme_of(row.uri) or row.uri.startswith("/")), None)
    if elsewhere is not None:
        return f"{elsewhere} is a URL or an absolute path, and --repair reads files below --images alone"
    spent = next((row for row in lost if row.reason in _OF_THIS_MACHINE), None)
    if spent is not None:
        return f"{spent.uri} is rejected as {spent.reason} here. {_OF_THIS_MACHINE[spent.reason]}"
    here = library_versions()
    versions = [
        f"{name} {there} then, {here.get(name)} now"
        for name, there in manifest.versions.items()
        if here.get(name) != there
    ]
    return f"library versions differ ({'; '.join(versions)})" if versions else "an image changed or is gone"


def _replace(root: Path, entry: FileEntry, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise AlignDetError(
            f"{entry.path} of {root} cannot be rebuilt to what was committed: the folder --images is missing or "
            "its images changed, or another version of pyarrow wrote it. Mine the images again into a new folder."
        )
    write_atomically(root / entry.path, content)
