"""Cluster ids: the same for the same features and seed, committed whole, found by everything that reads a dataset."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from aligndet_train.stream import ProposalStream
from pipeline.clusters import ClusterSettings, cluster_dataset
from proposals.cli import build_app
from proposals.cluster_sheet import COLUMNS, cluster_sheet
from proposals.convert.hub import write_hub_folder
from proposals.dataset import ProposalReader, layout, open_dataset
from proposals.dataset.clusters import read_clusters
from proposals.dataset.regions import RegionStore
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.paths import as_path

K = 6


def quietly(_):
    pass


@pytest.fixture
def dataset(mined_dataset, tmp_path):
    """A dataset with features in which a box's group is plain: six far directions and a little noise."""
    root = shutil.copytree(mined_dataset, tmp_path / "dataset")
    store, rng = RegionStore(root), np.random.default_rng(0)
    store.begin({"backbone": "made up"})
    for shard in open_dataset(root).manifest.shards:
        groups = rng.integers(0, K, shard.proposals) * (rng.random(shard.proposals) < 0.8)
        rows = np.eye(K, 16)[groups] * 5 + rng.normal(0, 0.05, (shard.proposals, 16))
        store.write(shard, rows.astype(np.float16))
    return root


def groups_of(root):
    store = RegionStore(root)
    return np.concatenate([store.read(s)[:, :K].argmax(axis=1) for s in open_dataset(root).manifest.shards])


def clustered(root, seed=0, k=K):
    return cluster_dataset(root, ClusterSettings(k, pca=8, seed=seed), quietly)


def test_equal_seeds_give_equal_ids_and_the_largest_cluster_is_the_first(dataset):
    first, again = clustered(dataset), clustered(dataset)
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.distances, again.distances)
    sizes = np.bincount(first.ids, minlength=K + 1)[1:]
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    stored = read_clusters(dataset, open_dataset(dataset).manifest)
    assert np.array_equal(stored.ids, first.ids)


def test_features_that_are_no_numbers_are_refused(dataset):
    store, shard = RegionStore(dataset), open_dataset(dataset).manifest.shards[1]
    rows = store.read(shard).copy()
    rows[2, 3] = np.inf
    store.write(shard, rows)
    with pytest.raises(AlignDetError, match="NaN or infinite"):
        clustered(dataset)


def test_boxes_of_one_group_share_an_id(dataset):
    ids, groups = clustered(dataset).ids, groups_of(dataset)
    pairs = set(zip(ids.tolist(), groups.tolist(), strict=True))
    assert len(pairs) == len(set(groups.tolist())) == K


def test_every_reader_finds_the_ids_at_the_right_boxes(dataset, tmp_path):
    ids = clustered(dataset).ids
    opened = open_dataset(dataset)
    stream = ProposalStream(opened, 5, read_clusters(dataset, opened.manifest))
    offsets = ProposalReader(dataset, "parquet")[:].offsets
    for index in (0, 3, len(opened) - 1):
        assert stream[(0, index)].classes.tolist() == (ids[offsets[index] :][:5] - 1).tolist()
    done = CliRunner().invoke(
        build_app(), ["convert", str(dataset), str(tmp_path / "c.json"), "--to", "coco"]
    )
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "c.json").read_text())
    assert [a["category_id"] for a in written["annotations"]] == ids.tolist()
    assert written["categories"][K - 1]["name"] == f"cluster_{K}"


def test_ids_and_features_are_read_from_a_url(dataset):
    ids = clustered(dataset).ids
    remote = as_path("memory://clustered")
    remote.fs.put(str(dataset), remote.path, recursive=True)
    opened = open_dataset(remote)
    assert np.array_equal(read_clusters(opened.root, opened.manifest).ids, ids)
    assert not verify_dataset(remote, deep=True).problems


def test_verify_knows_ids_and_features_and_names_what_is_damaged(dataset):
    clustered(dataset)
    report = verify_dataset(dataset, deep=True)
    assert (report.problems, report.unfinished) == ((), ())
    victims = [
        *(dataset / layout.CLUSTERS).rglob("c/*"),
        *(dataset / layout.REGIONS / "00000").rglob("c/0/0"),
    ]
    for path in [path for path in victims if path.is_file()]:
        good = path.read_bytes()
        path.write_bytes(good[:-20] + bytes([good[-20] ^ 4]) + good[-19:])
        found = {problem.file for problem in verify_dataset(dataset, deep=True).problems}
        place = path.relative_to(dataset).as_posix()
        assert found == {
            layout.CLUSTERS_RECORD if place.startswith(layout.CLUSTERS) else "regions.zarr/00000"
        }
        path.write_bytes(good)
    strangers = ["clusters.zarr/stranger", "regions.zarr/00000/c/9/0", "regions.zarr/stranger"]
    for stranger in strangers:
        (dataset / stranger).parent.mkdir(exist_ok=True)
        (dataset / stranger).write_text("?")
    assert sorted(p.file for p in verify_dataset(dataset).problems) == strangers


def test_a_published_dataset_carries_its_ids(dataset, tmp_path):
    ids = clustered(dataset).ids
    hub = tmp_path / "hub"
    write_hub_folder(open_dataset(dataset), hub, "name", "cc-by-4.0")
    assert np.array_equal(read_clusters(hub, open_dataset(hub).manifest).ids, ids)
    assert verify_dataset(hub, deep=True).problems == ()


def test_a_dataset_with_lost_ids_is_not_published(dataset, tmp_path):
    clustered(dataset)
    shutil.rmtree(dataset / layout.CLUSTERS)
    with pytest.raises(AlignDetError, match=r"clusters\.json: .* is missing\. Run: aligndet cluster"):
        write_hub_folder(open_dataset(dataset), tmp_path / "hub", "name", "cc-by-4.0")
    assert not (tmp_path / "hub").exists()


def test_a_store_that_does_not_answer_is_not_a_dataset_without_ids(dataset, monkeypatch):
    clustered(dataset)
    remote = as_path("memory://unreachable")
    remote.fs.put(str(dataset), remote.path, recursive=True)

    def refuse(path, **_):
        raise OSError("503: slow down")

    monkeypatch.setattr(remote.fs, "info", refuse)
    with pytest.raises(AlignDetError, match=r"clusters\.json cannot be reached: 503"):
        read_clusters(remote, open_dataset(dataset).manifest)


def test_damaged_ids_are_refused_by_readers(dataset):
    clustered(dataset)
    record = dataset / layout.CLUSTERS_RECORD
    record.write_text(record.read_text().replace('"k": 6', '"k": 9'))
    with pytest.raises(AlignDetError, match=r"clusters\.json is damaged: its digest.*aligndet cluster"):
        read_clusters(dataset, open_dataset(dataset).manifest)


def test_missing_features_and_too_few_boxes_are_one_sentence(dataset):
    shutil.rmtree(dataset / layout.REGIONS / "00001")
    with pytest.raises(AlignDetError, match=r"features of 1 of 3 shards.*aligndet regions"):
        clustered(dataset)
    shard = open_dataset(dataset).manifest.shards[1]
    RegionStore(dataset).write(shard, np.zeros((shard.proposals, 16), np.float16))
    with pytest.raises(AlignDetError, match=r"boxes, fewer than 60000 clusters"):
        clustered(dataset, k=60000)


def test_adding_images_keeps_features_and_drops_ids(photos, tmp_path, mine_folder):
    images = tmp_path / "in"
    images.mkdir()
    for name in ("cat.jpg", "china.jpg"):
        shutil.copy(photos / name, images)
    root = mine_folder(images, tmp_path / "out")
    store = RegionStore(root)
    store.begin({})
    (shard,) = open_dataset(root).manifest.shards
    store.write(shard, np.random.default_rng(0).normal(size=(shard.proposals, 8)).astype(np.float16))
    clustered(root, k=2)
    shutil.copy(photos / "coffee.jpg", images)
    mine_folder(images, root)
    manifest = open_dataset(root).manifest
    assert read_clusters(root, manifest) is None
    assert [entry.name for entry in store.missing(manifest)] == ["00001"]
    assert verify_dataset(root, deep=True).problems == ()


def test_ids_of_other_boxes_are_refused(dataset, photos, tmp_path, mine_folder):
    clustered(dataset)
    other = mine_folder(photos, tmp_path / "other", images_per_shard=4)
    for name in (layout.CLUSTERS_RECORD, layout.CLUSTERS):
        copy = shutil.copytree if (dataset / name).is_dir() else shutil.copy
        copy(dataset / name, other / name)
    with pytest.raises(AlignDetError, match="other boxes than the dataset's"):
        read_clusters(other, open_dataset(other).manifest)
    assert [p.file for p in verify_dataset(other).problems] == [layout.CLUSTERS_RECORD]


def test_sheet_shows_a_row_of_crops_of_different_images_for_every_cluster(dataset):
    sheet = cluster_sheet(open_dataset(dataset), clustered(dataset))
    pixels = np.asarray(sheet).reshape(-1, 3)
    assert sheet.width > COLUMNS * 400
    assert len(np.unique(pixels, axis=0)) > 1000
