"""What a job may write is what readers accept: found out before anything is mined, or written so that it fits."""

import hashlib
import re
import shutil

import numpy as np
import pytest

from pipeline.begin import begin
from pipeline.plan import make_plan
from pipeline.sources import FolderSource
from proposals.dataset import bounds, layout
from proposals.dataset.manifest import read_manifest, require_listable, shard_entry_bytes
from proposals.dataset.merge import merge_datasets
from proposals.dataset.tables import read_shard
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.errors import AlignDetError
from proposals.filter_spec import Filtered
from proposals.recipe import Recipe
from tests.pipeline.jobs_by_hand import begun, finish, identity_of, two_images


@pytest.mark.parametrize(("images", "boxes"), [(64, 1), (1000, 1), (1000, 300), (4000, 1)])
def test_equal_images_that_stay_where_they_are_can_be_committed(tmp_path, images, boxes):
    (tmp_path / "shards").mkdir()
    corner = np.random.default_rng(0).integers(0, 400, (boxes, 2))
    found = Filtered(
        np.concatenate([corner, corner + 50], 1).astype(np.float32), np.arange(boxes, dtype=np.float32), "ok"
    )
    sha256 = hashlib.sha256(b"x").hexdigest()
    with ShardWriter(tmp_path, "00000", embed=False) as writer:
        for number in range(images):
            uri = f"frames/{number:06d}.png"
            writer.add(MinedImage(layout.key_of(uri), uri, b"x", sha256, 640, 480, 1, found))
        entry = writer.commit()
    assert (entry.images, entry.proposals) == (images, images * boxes)
    assert read_shard(tmp_path, entry).num_rows == images


def test_an_entry_of_dataset_json_takes_no_more_than_is_reckoned_with(mined_dataset):
    manifest = read_manifest(mined_dataset)
    without = manifest.model_copy(update={"shards": ()})
    shards = len(manifest.shards)
    size = len(manifest.model_dump_json(indent=1)) - len(without.model_dump_json(indent=1))
    most = shards * shard_entry_bytes(shards, 3)
    assert size <= most < 2 * size


def test_shards_that_dataset_json_cannot_list_are_refused_with_a_number_that_works():
    with pytest.raises(AlignDetError, match="more than the") as caught:
        require_listable(40_000_000, 40_000_000, 1)
    number = int(re.search(r"--images-per-shard (\d+)", str(caught.value))[1])
    require_listable(-(-40_000_000 // number), 40_000_000, number)


def test_too_many_shards_are_refused_before_anything_is_written(photos, mined_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_MANIFEST_BYTES", 2**20 + 1500)
    plan = make_plan(FolderSource(photos).entries(), 1)
    identity = identity_of(plan, Recipe(), 1)
    with pytest.raises(AlignDetError, match="--images-per-shard 4 or more"):
        begin(tmp_path / "out", plan, identity)
    with pytest.raises(AlignDetError, match="make 3 shards, more than the 2"):
        merge_datasets([mined_dataset], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_does_not_grow_beyond_what_dataset_json_can_list(photos, tmp_path, monkeypatch):
    images, out = two_images(photos, tmp_path / "in"), tmp_path / "out"
    finish(images, begun(images, out))
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for number in range(8):
        shutil.copy(photos / "coffee.jpg", images / f"{number}.jpg")
    monkeypatch.setattr(bounds, "MAX_MANIFEST_BYTES", 2**20 + 1500)
    with pytest.raises(AlignDetError, match="make 5 shards, more than the 2"):
        begun(images, out)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
