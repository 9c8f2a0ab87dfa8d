"""A dataset of a newer minor format is read, and written again by nothing: what that nothing knows would be lost."""

import json
import shutil

import pytest

from pipeline.retry import begin_retry
from pipeline.sources import FolderSource
from proposals.convert.hub import write_hub_folder
from proposals.dataset import layout, open_dataset
from proposals.dataset.consolidated import consolidate
from proposals.dataset.merge import merge_datasets
from proposals.dataset.seal import seal
from proposals.errors import NewerFormatError
from proposals.recipe import Recipe


@pytest.fixture
def newer(mined_dataset, tmp_path):
    root = shutil.copytree(mined_dataset, tmp_path / "newer")
    path = root / layout.MANIFEST
    content = json.loads(path.read_text()) | {"format_version": "1.9", "invented_since": "x"}
    del content["digest"]
    path.write_bytes(seal(json.dumps(content, indent=1).encode() + b"\n"))
    return root


@pytest.fixture
def more(photos, tmp_path):
    """The dataset's photographs and one that it has not."""
    images = shutil.copytree(photos, tmp_path / "more")
    shutil.copy(next(images.rglob("*.jpg")), images / "another.jpg")
    return images


@pytest.mark.parametrize(
    "write",
    [
        lambda root, more, mine_folder: consolidate(root),
        lambda root, more, mine_folder: mine_folder(more, root),
        lambda root, more, mine_folder: begin_retry(root, Recipe(), FolderSource(more)),
        lambda root, more, mine_folder: merge_datasets([root], root.parent / "merged"),
        lambda root, more, mine_folder: write_hub_folder(open_dataset(root), root.parent / "hub", "n", "mit"),
    ],
    ids=["consolidate", "mine", "retry", "merge", "hub"],
)
def test_it_is_not_touched(newer, more, mine_folder, content, write):
    before = content(newer)
    with pytest.raises(NewerFormatError, match=r"version 1\.9, newer than .* Nothing was touched"):
        write(newer, more, mine_folder)
    assert content(newer) == before
