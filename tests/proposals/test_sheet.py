"""The contact sheet and its verb."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.cluster_sheet import CAPTION, CROP, CROPS, cluster_sheet
from proposals.dataset import open_dataset
from proposals.dataset.clusters import Clusters
from proposals.sheet import contact_sheet, evenly_spaced, rank_colors


def test_evenly_spaced_reaches_both_ends_without_repeats():
    assert evenly_spaced(8, 3) == [0, 4, 7]
    assert evenly_spaced(3, 12) == [0, 1, 2]
    assert evenly_spaced(1000, 12)[-1] == 999
    assert evenly_spaced(5, 1) == [0]


def test_colours_tell_ranks_apart():
    assert len(set(rank_colors(10))) == 10
    first, last = rank_colors(10)[0], rank_colors(10)[-1]
    assert first[0] > first[2]
    assert last[2] > last[0]
    assert rank_colors(0) == []


def test_boxes_are_what_is_drawn(mined_dataset):
    dataset = open_dataset(mined_dataset)
    bare, drawn = contact_sheet(dataset, 6, 0), contact_sheet(dataset, 6, 5)
    assert bare.size == drawn.size
    changed = np.abs(np.asarray(bare, int) - np.asarray(drawn, int)).any(axis=2)
    assert 0.003 < changed.mean() < 0.3
    best = np.array(rank_colors(5)[0])
    assert (np.asarray(drawn) == best).all(axis=2).sum() > 100


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_any_count_fits(mined_dataset, count):
    sheet = contact_sheet(open_dataset(mined_dataset), count, 3)
    assert sheet.width > 400
    assert sheet.height > 300


@pytest.mark.parametrize("name", ["a\nb.jpg", "\x1b[31m\t.jpg", "x" * 251 + ".jpg"])
def test_any_file_name_can_be_a_caption(photos, mine_folder, tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(photos / "cat.jpg", folder / name)
    dataset = open_dataset(mine_folder(folder, tmp_path / name[:200]))
    assert contact_sheet(dataset, 1, 3).width > 400


def test_slivers_at_the_far_edges_have_a_crop(photos, tmp_path):
    shutil.copy(photos / "cat.jpg", tmp_path)
    height, width = cv2.imread(str(tmp_path / "cat.jpg")).shape[:2]
    boxes = [[width - 0.3, 10, 0.3, 40], [10, height - 0.3, 40, 0.3], [0, 0, 0.3, 0.3]]
    annotations = [{"image_id": 1, "bbox": box} for box in boxes]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "cat.jpg"}], "annotations": annotations}))
    arguments = ["convert", path, tmp_path / "out", "--to", "dataset", "--images", tmp_path]
    assert CliRunner().invoke(build_app(), [*map(str, arguments)]).exit_code == 0
    clusters = Clusters(3, np.array([1, 2, 3], np.int32), np.zeros(3, np.float32))
    pixels = np.asarray(cluster_sheet(open_dataset(tmp_path / "out"), clusters))
    crops = pixels[12 + CAPTION :][:CROP]
    for left in range(12, 3 * (CROPS * CROP + 12), CROPS * CROP + 12):  # the first of each cluster
        assert (crops[:, left : left + CROP] != pixels[0, 0]).any()


def test_show_writes_the_picture(mined_dataset, tmp_path):
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(build_app(), ["show", str(mined_dataset), "--n", "4", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"4 of 8 images, {Image.open(out).width} x" in result.output


def test_version_is_printed():
    result = CliRunner().invoke(build_app(), ["--version"])
    assert result.output.startswith("aligndet ")
