"""proposals.zarr: all boxes of a dataset in four arrays, written by parallel processes, proven by dataset.json.

``offsets`` [N + 1] int64, ``boxes`` [M, 4] float32, ``rank`` [M] float32, ``keys`` [N, 65] uint8 (ASCII, zero padded);
image i, in dataset order, has the boxes offsets[i] to offsets[i + 1].
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from proposals.dataset import layout
from proposals.dataset.checks.folder import file_faults
from proposals.dataset.files import alone_with, file_sha256, fsync, remove_leftovers, temporary_name
from proposals.dataset.manifest import (
    FileEntry,
    Manifest,
    ShardEntry,
    committing,
    read_manifest,
    refuse_newer,
    write_model,
)
from proposals.dataset.processes import ProcessDiedError, map_apart
from proposals.dataset.tables import box_offsets, flat_boxes, flat_ranks, read_columns, read_shard
from proposals.errors import AlignDetError
from proposals.paths import local_only

CHUNK = 4096
ZARR_SHARD = 2**20


@dataclass(frozen=True)
class _Part:
    """A shard of the dataset, and where its images and boxes start in the arrays."""

    entry: ShardEntry
    image: int
    box: int


@dataclass(frozen=True)
class _Piece:
    """One Zarr shard: elements start to stop of an array, and the dataset's shards that they come from."""

    start: int
    stop: int
    parts: tuple[_Part, ...]


def consolidate(root: Path, workers: int = 1, zarr_shard: int = ZARR_SHARD) -> bool:
    """Write proposals.zarr into the dataset ``root`` and enter it in dataset.json; False when it is there, intact.

    workers: processes; each Zarr shard, of ``zarr_shard`` elements (a multiple of 4096, or fewer), is written by one.
    A stopped call leaves the dataset as it was; of two at once the second waits for the first. Raises
    AlignDetError when the dataset is damaged, of a newer format, holds no image, was changed meanwhile, or when a link
    is in the place of the arrays.
    """
    root = local_only(root, "consolidate")
    manifest = read_manifest(root)
    refuse_newer(root / layout.MANIFEST, manifest.format_version, "consolidating")
    if not manifest.totals.images:
        raise AlignDetError(f"{root} holds no image, so there is nothing to consolidate.")
    if not (root / layout.SHARDS).is_dir():
        raise AlignDetError(f"{root / layout.SHARDS} is missing: the dataset is damaged.")
    # Not the dataset's own folder, which `mine` locks: it would wait here, and say nothing.
    with alone_with(root / layout.SHARDS):
        return _consolidate(root, workers, zarr_shard)


def _consolidate(root: Path, workers: int, zarr_shard: int) -> bool:
    manifest = read_manifest(root)
    if manifest.consolidated and not any(_faults(root, manifest)):
        return False
    if (root / layout.CONSOLIDATED).is_symlink():
        raise AlignDetError(
            f"{root / layout.CONSOLIDATED} is a link, and what it leads to is not replaced. Remove the link, then run "
            "the same command again."
        )
    _require_sound_tables(root, manifest)
    remove_leftovers(root, of=(layout.CONSOLIDATED,))
    temporary = temporary_name(root / layout.CONSOLIDATED)
    try:
        _create(temporary, manifest, zarr_shard)
        _write(root, temporary, manifest, workers, zarr_shard)
        _commit(root, temporary, manifest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _require_sound_tables(root: Path, manifest: Manifest) -> None:
    tables = (shard.parquet for shard in manifest.shards if shard.parquet is not None)
    faults = ((table.path, fault) for table in tables for fault in file_faults(root, table, content=True))
    for path, fault in faults:
        raise AlignDetError(f"{root / path} {fault}. Repair it first: aligndet verify {root} --repair")


def _faults(root: Path, manifest: Manifest) -> Iterator[str]:
    for entry in manifest.consolidated:
        yield from file_faults(root, entry, content=True)


def _create(path: Path, manifest: Manifest, zarr_shard: int) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    images, boxes = manifest.totals.images, manifest.totals.proposals
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "offsets": ((images + 1,), "int64"),
        "boxes": ((boxes, 4), "float32"),
        "rank": ((boxes,), "float32"),
        "keys": ((images, layout.KEY_LENGTH), "uint8"),
    }
    group = zarr.create_group(path, attributes={"format": manifest.format, "images": images, "boxes": boxes})
    for name, (shape, dtype) in shapes.items():
        group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(min(CHUNK, zarr_shard), *shape[1:]),
            shards=(zarr_shard, *shape[1:]),
            compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")],
            fill_value=0,
        )


def _write(root: Path, path: Path, manifest: Manifest, workers: int, zarr_shard: int) -> None:
    parts = list(_parts(manifest))
    by_box = _pieces(parts, [part.box for part in parts], manifest.totals.proposals, zarr_shard)
    by_image = _pieces(parts, [part.image for part in parts], manifest.totals.images + 1, zarr_shard)
    calls = [(_write_boxes, piece) for piece in by_box] + [(_write_images, piece) for piece in by_image]
    if workers == 1:
        for call in calls:
            _write_piece(root, path, call)
        return
    try:
        map_apart(partial(_write_piece, root, path), calls, workers)
    except ProcessDiedError as error:
        raise AlignDetError(
            f"a process that wrote {layout.CONSOLIDATED} died, perhaps for want of memory. Nothing was committed: "
            "run the same command again, with fewer --workers."
        ) from error


def _write_piece(root: Path, path: Path, call: tuple[Callable[[Path, Path, _Piece], None], _Piece]) -> None:
    write, piece = call
    write(root, path, piece)


def _parts(manifest: Manifest) -> Iterator[_Part]:
    image = box = 0
    for entry in manifest.shards:
        if entry.images:
            yield _Part(entry, image, box)
        image, box = image + entry.images, box + entry.proposals


def _pieces(parts: list[_Part], starts: Sequence[int], length: int, step: int) -> Iterator[_Piece]:
    for start in range(0, length, step):
        stop = min(start + step, length)
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, stop, side="left"))
        yield _Piece(start, stop, tuple(parts[first:last]))


def _write_boxes(root: Path, path: Path, piece: _Piece) -> None:
    boxes = np.empty((piece.stop - piece.start, 4), dtype=np.float32)
    rank = np.empty(len(boxes), dtype=np.float32)
    for part in piece.parts:
        table = read_shard(root, part.entry)
        here, there = _overlap(piece, part.box, part.entry.proposals)
        boxes[here], rank[here] = flat_boxes(table)[there], flat_ranks(table)[there]
    group = _open(path)
    group["boxes"][piece.start : piece.stop] = boxes
    group["rank"][piece.start : piece.stop] = rank


def _write_images(root: Path, path: Path, piece: _Piece) -> None:
    offsets = np.empty(piece.stop - piece.start, dtype=np.int64)
    keys = np.zeros(len(offsets), dtype=f"S{layout.KEY_LENGTH}")
    for part in piece.parts:
        table = read_columns(root, part.entry, ["key", "rank"]).combine_chunks()
        here, there = _overlap(piece, part.image, part.entry.images)
        offsets[here] = part.box + box_offsets(table)[:-1][there]
        keys[here] = np.array(table.column("key").to_pylist(), dtype=keys.dtype)[there]
    group = _open(path)
    images = group["keys"].shape[0]
    if piece.stop > images:
        offsets[-1] = group["boxes"].shape[0]
    group["offsets"][piece.start : piece.stop] = offsets
    stop = min(piece.stop, images)
    if stop > piece.start:
        flat = keys[: stop - piece.start].view(np.uint8).reshape(-1, layout.KEY_LENGTH)
        group["keys"][piece.start : stop] = flat


def _overlap(piece: _Piece, start: int, count: int) -> tuple[slice, slice]:
    first, last = max(piece.start, start), min(piece.stop, start + count)
    return slice(first - piece.start, last - piece.start), slice(first - start, last - start)


def _open(path: Path) -> Any:
    import zarr

    return zarr.open_group(path, mode="r+", zarr_format=3)


def _commit(root: Path, temporary: Path, manifest: Manifest) -> None:
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    entries = tuple(_entry(temporary, path) for path in files)
    for path in [*files, *(path for path in temporary.rglob("*") if path.is_dir()), temporary]:
        fsync(path)
    final = root / layout.CONSOLIDATED
    old = temporary_name(final)
    # `mine` writes dataset.json here, too, so never between the comparison and what follows it.
    with committing(root):
        if read_manifest(root) != manifest:
            raise AlignDetError(f"{root} was changed while it was consolidated. Run the same command again.")
        if final.exists():
            final.replace(old)
        temporary.replace(final)
        fsync(root)
        write_model(root / layout.MANIFEST, manifest.model_copy(update={"consolidated": entries}))
    shutil.rmtree(old, ignore_errors=True)


def _entry(temporary: Path, path: Path) -> FileEntry:
    name = f"{layout.CONSOLIDATED}/{path.relative_to(temporary).as_posix()}"
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=file_sha256(path))
