"""What one shard task makes of images, without Ray."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from pipeline.image_records import Refusal, Stopwatch
from pipeline.plan import make_plan, tasks
from pipeline.shard_task import Work, mine_shard, mined_images
from pipeline.sources import FolderSource, SourceUnavailableError
from proposals.boxes import scale
from proposals.dataset import open_dataset
from proposals.dataset.manifest import CommitRecord
from proposals.images import decode_bgr, resize_max_side
from proposals.recipe import Recipe
from proposals.selective_search import propose
from tests.proposals.filtering_by_hand import kept_by_hand


def _rows(boxes):
    return {tuple(box) for box in boxes.tolist()}


def test_boxes_are_those_of_the_steps_done_by_hand(mined_dataset, photos):
    recipe = Recipe()
    for record in open_dataset(mined_dataset)[:3]:
        data = (photos / record.uri).read_bytes()
        small, x, y = resize_max_side(decode_bgr(data).bgr, recipe.max_side)
        found = propose(small, recipe.mode, recipe.image_seed(hashlib.sha256(data).hexdigest()))
        boxes, rank = kept_by_hand(scale(found.boxes, x, y), record.width, record.height)
        assert np.array_equal(record.boxes, boxes)
        assert np.array_equal(record.rank, rank)


def test_the_seed_changes_the_order_and_not_the_set(photos, mine_folder, tmp_path, content):
    plain = {"max_side": 128, "filter": "none", "rank": "opencv"}
    first, again, other = (
        mine_folder(photos, tmp_path / name, Recipe(seed=seed, **plain))
        for name, seed in [("first", 0), ("again", 0), ("other", 1)]
    )
    assert content(first) == content(again)
    for one, two in zip(open_dataset(first), open_dataset(other), strict=True):
        assert _rows(one.boxes) == _rows(two.boxes)
        assert not np.array_equal(one.boxes, two.boxes)


@pytest.fixture
def turned(photos, tmp_path):
    """The same pixels stored upright, and stored on their side with EXIF orientation 6."""
    upright = Image.open(photos / "cat.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "turned.png", exif=exif)
    return tmp_path / "in"


def test_boxes_of_a_turned_image_lie_in_the_upright_frame(turned, tmp_path, mine_folder):
    out = mine_folder(turned, tmp_path / "out", Recipe(max_side=128, filter="none"))
    side, up = open_dataset(out)
    assert (side.uri, side.orientation, up.orientation) == ("turned.png", 6, 1)
    assert (side.width, side.height) == (up.width, up.height)
    assert _rows(side.boxes) == _rows(up.boxes)


def test_boxes_come_back_to_original_pixels(photos, mine_folder, tmp_path):
    out = mine_folder(photos, tmp_path / "out", Recipe(max_side=64, filter="none"))
    for record in open_dataset(out):
        assert record.boxes[:, 2].max() == record.width
        assert record.boxes[:, 3].max() == record.height


def test_a_commit_record_says_what_the_shard_cost(mined_dataset):
    record = CommitRecord.model_validate_json((mined_dataset / "shards" / "00000.json").read_bytes())
    stages = {name: seconds for name, seconds in record.timing.items() if name != "total"}
    assert set(stages) == {"read", "decode", "resize", "propose", "filter", "write"}
    assert all(seconds > 0 for seconds in stages.values())
    # Reading and writing overlap the search of another image.
    assert max(stages.values()) <= record.timing["total"]
    assert record.shard.images == 3


@dataclass(frozen=True)
class _Cut(FolderSource):
    """A source that is cut off when it comes to one image."""

    at: str = ""

    def read(self, uri):
        if uri == self.at:
            raise SourceUnavailableError("cut off")
        return super().read(uri)


def test_a_shard_after_one_that_failed_half_way_gets_its_own_boxes(photos):
    first, second, *_ = tasks(make_plan(FolderSource(photos).entries(), 3))
    recipe = Recipe(max_side=100)

    def boxes(source, task):
        outcomes = mined_images(task, Work(source, photos, recipe, ""), Stopwatch())
        return [(outcome.uri, outcome.proposals.boxes.tolist()) for outcome in outcomes]

    expected = boxes(FolderSource(photos), second)
    for uri in first.uris:
        with pytest.raises(SourceUnavailableError):
            boxes(_Cut(photos, at=uri), first)
        assert boxes(FolderSource(photos), second) == expected


def test_a_changed_source_is_refused(photos, mine_folder, tmp_path):
    from proposals.errors import AlignDetError

    images = shutil.copytree(photos, tmp_path / "in")
    out = mine_folder(images, tmp_path / "out", Recipe(max_side=64))
    (images / "cat.jpg").unlink()
    with pytest.raises(AlignDetError, match=r"source\.images: 8 there, 7 here"):
        mine_folder(images, out, Recipe(max_side=64))


_MINES = """
import sys
from pathlib import Path

from pipeline.plan import ShardTask
from pipeline.shard_task import Work, mine_shard
from pipeline.sources import FolderSource
from proposals.dataset import layout
from proposals.recipe import Recipe

photos, out, embed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "embed"
layout.record_path(out, "00000").parent.mkdir(parents=True)
(out / "shards").mkdir(exist_ok=True)
task = ShardTask("00000", ("cat",), ("cat.jpg",))
record = mine_shard(task, Work(FolderSource(photos), out, Recipe(max_side=64), "job", embed=embed))
assert record.shard.images == 1
assert "pandas" not in sys.modules
"""


@pytest.mark.parametrize("images", ["embed", "reference"])
def test_a_worker_does_not_import_pandas(photos, tmp_path, images):
    subprocess.run([sys.executable, "-c", _MINES, str(photos), str(tmp_path / "out"), images], check=True)


def test_a_shard_without_an_image_leaves_nothing_of_an_attempt_that_had_some(photos, tmp_path):
    (tmp_path / "shards").mkdir()
    source = FolderSource(photos)
    (task, *_) = tasks(make_plan(source.entries(), 1))
    work = Work(source, tmp_path, Recipe(max_side=64), "job")
    mine_shard(task, work)
    assert len(list((tmp_path / "shards").iterdir())) == 3
    refused = Refusal.without_traceback("propose", "timeout", "")
    mine_shard(task, work, quarantine={task.keys[0]: refused})
    assert [path.suffix for path in (tmp_path / "shards").iterdir()] == [".json"]
