"""The contact sheet and its verb."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import open_dataset
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


def test_show_writes_the_picture(mined_dataset, tmp_path):
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(build_app(), ["show", str(mined_dataset), "--n", "4", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"4 of 8 images, {Image.open(out).width} x" in result.output


def test_version_is_printed():
    result = CliRunner().invoke(build_app(), ["--version"])
    assert result.output.startswith("aligndet ")
