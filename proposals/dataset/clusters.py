"""clusters.json and clusters.zarr: a cluster id for every box of a dataset (the classes of DETR's pretraining).

The record is sealed and names the boxes it is true of; the arrays are ``cluster`` [M] int32, from 1 to k, and
``distance`` [M] float32, from the box's features to the centre of its cluster. M boxes, in dataset order.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proposals.dataset import layout
from proposals.dataset.bounds import MAX_RECORD_BYTES, read_bounded
from proposals.dataset.checks.folder import file_faults
from proposals.dataset.files import file_sha256, fsync, remove_tree, temporary_name
from proposals.dataset.manifest import FORMAT_VERSION, FileEntry, Manifest, Sha256, write_model
from proposals.dataset.seal import seal_state
from proposals.dataset.zarr_reading import Declared, open_arrays, values
from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import is_there

MAX_CLUSTERS = 65536
_CHUNK, _ZARR_SHARD = 4096, 2**20


class ClusterRecord(BaseModel):
    """``clusters.json``: what the ids were made from, and the files that hold them.

    boxes_of: see `boxes_fingerprint`. features: identity of the region features (backbone, sizes).
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["aligndet-clusters"] = "aligndet-clusters"
    format_version: str = FORMAT_VERSION
    boxes: int = Field(ge=0)
    boxes_of: Sha256
    k: int = Field(ge=1, le=MAX_CLUSTERS)
    pca: int = Field(ge=1)
    seed: int = Field(ge=0)
    features: dict[str, Any]
    versions: dict[str, str]
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Cluster ids [M] int32 in 1..k and distances [M] float32 of all boxes, in dataset order."""

    k: int
    ids: npt.NDArray[np.int32]
    distances: npt.NDArray[np.float32]


def boxes_fingerprint(manifest: Manifest) -> str:
    """The sha256 of all Parquet tables' sha256, in order: what ids of boxes are true of."""
    digest = hashlib.sha256()
    for shard in manifest.shards:
        digest.update((shard.parquet.sha256 if shard.parquet is not None else "none").encode() + b"\n")
    return digest.hexdigest()


def read_cluster_record(root: Path) -> ClusterRecord | None:
    """The record in the dataset folder ``root``, None without one.

    Raises AlignDetError when it is damaged, or its store cannot be reached.
    """
    path = root / layout.CLUSTERS_RECORD
    if not is_there(path):
        return None
    data = read_bounded(path, MAX_RECORD_BYTES)
    try:
        if seal_state(data) != "intact":
            raise ValueError("its digest does not fit")
        return ClusterRecord.model_validate_json(data)
    except (ValueError, ValidationError) as error:
        raise AlignDetError(f"{path} is damaged: {error}. Run: aligndet cluster {root}") from error


def cluster_faults(root: Path, record: ClusterRecord, manifest: Manifest, *, content: bool) -> list[str]:
    """What makes ``record`` untrue: other boxes than the dataset's, files missing, changed or beside the group."""
    if not _are_of(record, manifest):
        return ["is of other boxes than the dataset's, it was made before images were added"]
    outside = [e.path for e in record.files if not e.path.startswith(f"{layout.CLUSTERS}/") or ".." in e.path]
    if outside:
        return [f"names a file outside {layout.CLUSTERS}"]
    faults = [(e.path, what) for e in record.files for what in file_faults(root, e, content=content)]
    return [f"{path} {what}" for path, what in faults]


def read_sound_record(root: Path, manifest: Manifest, *, content: bool) -> ClusterRecord | None:
    """The record in ``root``, None without one; raises AlignDetError when `cluster_faults` finds any."""
    record = read_cluster_record(root)
    faults = [] if record is None else cluster_faults(root, record, manifest, content=content)
    if faults:
        raise AlignDetError(f"{root / layout.CLUSTERS_RECORD}: {faults[0]}. Run: aligndet cluster {root}")
    return record


def read_clusters(root: Path, manifest: Manifest) -> Clusters | None:
    """The cluster ids of the dataset in ``root``, None when it has none.

    Raises AlignDetError when they are damaged, or of other boxes (images were added since).
    """
    record = read_sound_record(root, manifest, content=True)
    if record is None:
        return None
    try:
        wanted: dict[str, Declared] = {
            "cluster": ((record.boxes,), "int32"),
            "distance": ((record.boxes,), "float32"),
        }
        arrays = open_arrays(root / layout.CLUSTERS, wanted)
        ids, distances = (np.asarray(values(arrays[name])) for name in wanted)
    except UnansweredError:
        raise
    except AlignDetError as error:
        raise AlignDetError(f"{error} Run: aligndet cluster {root}") from error
    if len(ids) and not 1 <= int(ids.min()) <= int(ids.max()) <= record.k:
        raise AlignDetError(
            f"{layout.CLUSTERS} of {root} has ids outside 1..{record.k}. Run: aligndet cluster {root}"
        )
    return Clusters(record.k, ids, distances)


def write_clusters(root: Path, record: ClusterRecord, clusters: Clusters) -> None:
    """Write arrays and record; readers see the old ids, none for a moment, or the new ones. ``files`` is filled in."""
    import zarr
    from zarr.codecs import BloscCodec

    temporary = temporary_name(root / layout.CLUSTERS)
    group = zarr.create_group(temporary, attributes={"k": clusters.k, "boxes": len(clusters.ids)})
    for name, column in (("cluster", clusters.ids), ("distance", clusters.distances)):
        array = group.create_array(
            name,
            shape=column.shape,
            dtype=column.dtype,
            chunks=(_CHUNK,),
            shards=(_ZARR_SHARD,),
            compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")],
            fill_value=0,
        )
        array[:] = column
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    for path in [*files, *(path for path in temporary.rglob("*") if path.is_dir()), temporary]:
        fsync(path)
    entries = tuple(_entry(temporary, path) for path in files)
    _remove_clusters(root)
    temporary.replace(root / layout.CLUSTERS)
    fsync(root)
    write_model(root / layout.CLUSTERS_RECORD, record.model_copy(update={"files": entries}))


def remove_stale_clusters(root: Path, manifest: Manifest) -> None:
    """Take ids back that are of other boxes than the dataset's, damaged, or without a record."""
    try:
        record = read_cluster_record(root)
    except AlignDetError:
        record = None
    if record is None or not _are_of(record, manifest):
        _remove_clusters(root)


def _are_of(record: ClusterRecord, manifest: Manifest) -> bool:
    return (record.boxes, record.boxes_of) == (manifest.totals.proposals, boxes_fingerprint(manifest))


def _remove_clusters(root: Path) -> None:
    """Take the ids back, the record first: ids without a record count as none."""
    (root / layout.CLUSTERS_RECORD).unlink(missing_ok=True)
    remove_tree(root / layout.CLUSTERS)


def _entry(temporary: Path, path: Path) -> FileEntry:
    name = f"{layout.CLUSTERS}/{path.relative_to(temporary).as_posix()}"
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=file_sha256(path))
