"""From region features to a cluster id for every box: incremental PCA, then mini-batch k-means.

Features are read three times, a few shards at a time: for the PCA, for the sample that k-means learns from, for the
ids. Everything random is seeded and one thread sums, so the same features give the same ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proposals.dataset.clusters import ClusterRecord, Clusters, boxes_fingerprint, write_clusters
from proposals.dataset.manifest import Manifest, read_manifest
from proposals.dataset.regions import Features, RegionStore
from proposals.errors import AlignDetError

Rows = npt.NDArray[np.float32]
_BATCH = 8192
# More boxes do not move 256 centres any further, and these fit into 256 MiB.
_SAMPLE = 262_144


@dataclass(frozen=True)
class ClusterSettings:
    """k: clusters. pca: dimensions kept, at most those of the features. seed: of sample and k-means."""

    k: int = 256
    pca: int = 256
    seed: int = 0


def cluster_dataset(root: Path, settings: ClusterSettings, report: Callable[[str], None]) -> Clusters:
    """Give every box of the dataset ``root`` a cluster id, from its regions.zarr, and commit them.

    Clusters are numbered by size: 1 is the largest. report: called with a sentence before each pass. Raises
    AlignDetError when features are missing, or there are fewer boxes than clusters.
    """
    from threadpoolctl import threadpool_limits

    manifest, store = read_manifest(root), RegionStore(root)
    boxes = manifest.totals.proposals
    _require_features(store, manifest, settings)
    with threadpool_limits(1):
        report(f"PCA of {boxes:,} boxes")
        pca = _fit_pca(store, manifest, min(settings.pca, boxes))
        sample = _sample(store, manifest, pca, settings.seed)
        report(f"k-means of {len(sample):,} boxes in {sample.shape[1]} dimensions")
        kmeans = _fit_kmeans(sample, settings)
        report("ids of all boxes")
        labels, distances = _assign(store, manifest, pca, kmeans)
    clusters = Clusters(settings.k, _by_size(labels, settings.k), distances)
    write_clusters(root, _record(manifest, store, settings, sample.shape[1]), clusters)
    return clusters


def sizes_line(clusters: Clusters) -> str:
    """The sizes of clusters in a sentence."""
    sizes = np.bincount(clusters.ids, minlength=clusters.k + 1)[1:]
    empty = int((sizes == 0).sum())
    none = f", {empty} empty" if empty else ""
    return (
        f"{clusters.k} clusters of {len(clusters.ids):,} boxes: smallest {sizes.min():,}, median "
        f"{int(np.median(sizes)):,}, largest {sizes.max():,}{none}"
    )


def _require_features(store: RegionStore, manifest: Manifest, settings: ClusterSettings) -> None:
    missing = store.missing(manifest)
    if not manifest.totals.images:
        raise AlignDetError(f"{store.root} holds no image, so there is nothing to cluster")
    if store.identity() is None or missing:
        raise AlignDetError(
            f"{store.root} lacks the features of {len(missing)} of {len(manifest.shards)} shards. Run: "
            f"aligndet regions {store.root} --backbone ..."
        )
    if manifest.totals.proposals < settings.k:
        raise AlignDetError(
            f"{store.root} has {manifest.totals.proposals} boxes, fewer than {settings.k} clusters: use a smaller --k"
        )


def _fit_pca(store: RegionStore, manifest: Manifest, dimensions: int) -> Any:
    from sklearn.decomposition import IncrementalPCA

    pca: Any = None
    for batch in store.batches(manifest, max(_BATCH, 2 * dimensions)):
        if not np.isfinite(batch).all():
            raise AlignDetError(
                f"{store.path} holds values that are NaN or infinite: no cluster can be made of them. Remove it, then "
                "run `aligndet regions` again"
            )
        pca = pca or IncrementalPCA(n_components=min(dimensions, batch.shape[1]))
        pca.partial_fit(_unit_rows(batch))
    return pca


def _sample(store: RegionStore, manifest: Manifest, pca: Any, seed: int) -> Rows:
    """Boxes for k-means to learn from, drawn evenly from the whole dataset, in PCA space."""
    boxes = manifest.totals.proposals
    chosen = np.sort(np.random.default_rng(seed).permutation(boxes)[:_SAMPLE])
    parts, first = [], 0
    for batch in store.batches(manifest, _BATCH):
        inside = chosen[(chosen >= first) & (chosen < first + len(batch))] - first
        parts.append(_project(pca, batch[inside]))
        first += len(batch)
    return np.concatenate(parts)


def _fit_kmeans(sample: Rows, settings: ClusterSettings) -> Any:
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(
        settings.k,
        random_state=settings.seed,
        batch_size=_BATCH,
        n_init=3,
        init_size=min(len(sample), 3 * _BATCH),
    )
    return kmeans.fit(sample)


def _assign(
    store: RegionStore, manifest: Manifest, pca: Any, kmeans: Any
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    labels, distances = [], []
    for batch in store.batches(manifest, _BATCH):
        rows = _project(pca, batch)
        found = kmeans.predict(rows)
        labels.append(found.astype(np.int32))
        gaps = rows - kmeans.cluster_centers_[found]
        distances.append(np.sqrt((gaps * gaps).sum(axis=1)).astype(np.float32))
    return np.concatenate(labels), np.concatenate(distances)


def _by_size(labels: npt.NDArray[np.int32], k: int) -> npt.NDArray[np.int32]:
    """Ids 1..k in place of labels 0..k-1, the largest cluster first; of equal ones the lower label."""
    order = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    ids = np.empty(k, np.int32)
    ids[order] = np.arange(1, k + 1, dtype=np.int32)
    return ids[labels]


def _project(pca: Any, features: Features) -> Rows:
    if not len(features):
        return np.empty((0, pca.n_components_), np.float32)
    return np.asarray(pca.transform(_unit_rows(features)), dtype=np.float32)


def _unit_rows(features: Features) -> Rows:
    rows = features.astype(np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), dtype=np.float32)


def _record(
    manifest: Manifest, store: RegionStore, settings: ClusterSettings, dimensions: int
) -> ClusterRecord:
    return ClusterRecord(
        boxes=manifest.totals.proposals,
        boxes_of=boxes_fingerprint(manifest),
        k=settings.k,
        pca=dimensions,
        seed=settings.seed,
        features=store.identity() or {},
        versions={name: version(name) for name in ("numpy", "scikit-learn")},
        files=(),
    )
