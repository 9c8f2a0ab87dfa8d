"""Whether region features and cluster ids are what was written, and of this dataset's boxes."""

from collections.abc import Iterator
from pathlib import Path

from proposals.dataset import layout
from proposals.dataset.clusters import cluster_faults, read_cluster_record
from proposals.dataset.files import paths_in
from proposals.dataset.manifest import Manifest
from proposals.dataset.regions import RegionStore
from proposals.errors import AlignDetError, UnansweredError
from proposals.paths import is_there, is_web


def feature_faults(root: Path, manifest: Manifest, *, deep: bool) -> Iterator[tuple[str, str]]:
    """Pairs of a path below the folder and what is wrong with it; with ``deep`` the content of region features too.

    Features of fewer shards than the dataset has are no fault: `aligndet regions` goes on from there.
    """
    yield from _cluster_problems(root, manifest)
    store = RegionStore(root)
    if not _is_group(store.path):
        return
    try:
        store.identity()
    except UnansweredError:
        raise
    except AlignDetError as error:
        yield layout.REGIONS, str(error)
    yield from ((path, "is unexpected: features have no such file") for path in store.strangers(manifest))
    for shard in manifest.shards:
        folder = store.path / shard.name
        if deep and _is_group(folder) and (fault := store.fault(shard)) is not None:
            yield f"{layout.REGIONS}/{shard.name}", fault


def _cluster_problems(root: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    try:
        record = read_cluster_record(root)
    except UnansweredError:
        raise
    except AlignDetError as error:
        yield layout.CLUSTERS_RECORD, str(error)
        return
    if record is None:
        return
    yield from (
        (layout.CLUSTERS_RECORD, what) for what in cluster_faults(root, record, manifest, content=True)
    )
    listed = {entry.path for entry in record.files}
    for path in paths_in(root, layout.CLUSTERS):
        if path not in listed:
            yield path, f"is unexpected: {layout.CLUSTERS_RECORD} does not name it"


def _is_group(path: Path) -> bool:
    # A web server need not show folders, but files.
    return is_there(path / "zarr.json") if is_web(path) else path.is_dir()
