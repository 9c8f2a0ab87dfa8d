"""Training reads images of a dataset without tars where they are."""

import shutil

import pytest
import torch

from aligndet_train.stream.dataset import ProposalStream
from proposals.dataset import open_dataset
from proposals.errors import AlignDetError
from proposals.recipe import Recipe


def test_samples_are_those_of_a_dataset_with_tars(photos, mine_folder, tmp_path):
    images = shutil.copytree(photos, tmp_path / "images")
    embedded, referring = (
        ProposalStream(open_dataset(mine_folder(images, tmp_path / name, Recipe(max_side=96), embed=embed)))
        for name, embed in (("embedded", True), ("referring", False))
    )
    for index in range(len(embedded)):
        one, two = embedded[0, index], referring[0, index]
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.boxes, two.boxes)
    (images / referring.dataset[0].uri).write_bytes(b"another image")
    with pytest.raises(AlignDetError, match="has changed since it was mined"):
        referring[0, 0]
