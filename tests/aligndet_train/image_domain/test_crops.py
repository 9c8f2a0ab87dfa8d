"""What views are drawn from."""

import numpy as np
import pytest
import torch

from aligndet_train.backbones.registry import IMAGENET
from aligndet_train.image_domain.config import image_domain_config
from aligndet_train.image_domain.crops import CropStream, drawn_crop
from aligndet_train.image_domain.model import TwoCropPreprocessor
from aligndet_train.stream import ProposalStream, Sample
from aligndet_train.views import view_rng
from proposals.dataset import open_dataset
from proposals.errors import AlignDetError


def test_a_proposal_crop_is_the_pixels_of_a_box_with_its_margin(mined_dataset):
    dataset = open_dataset(mined_dataset)
    config = image_domain_config({"crops": "proposals", "crop_context": 0.2, "max_side": 4000})
    plain, crops = ProposalStream(dataset, config.proposals_per_image), CropStream(dataset, config)
    for index in range(len(dataset)):
        whole, cut = plain[(3, index)], crops[(3, index)]
        left, top, right, bottom = drawn_crop(view_rng(0, 3, index, 2), whole, config)
        assert torch.equal(cut.image, whole.image[:, top:bottom, left:right])
        grown = whole.boxes.numpy().copy()
        margin = (grown[:, 2:] - grown[:, :2]) * 0.1
        height, width = whole.image.shape[-2:]
        grown = np.hstack([grown[:, :2] - margin, grown[:, 2:] + margin]).clip(
            0, [width, height, width, height]
        )
        assert (np.abs(grown - [left, top, right, bottom]) <= 1).all(axis=1).any()
        assert min(right - left, bottom - top) >= config.min_crop


def test_another_epoch_draws_another_box_and_the_same_one_the_same(mined_dataset):
    stream = CropStream(open_dataset(mined_dataset), image_domain_config({"crops": "proposals"}))
    shapes = [tuple(stream[(epoch, 0)].image.shape) for epoch in range(6)]
    assert len(set(shapes)) > 1
    assert shapes == [tuple(stream[(epoch, 0)].image.shape) for epoch in range(6)]


def test_without_a_large_enough_box_the_image_itself_is_taken():
    boxes = torch.tensor([[0.0, 0.0, 31.0, 60.0], [5.0, 5.0, 20.0, 20.0]])
    config = image_domain_config({"crops": "proposals"})
    for some in (boxes, boxes[:0]):
        sample = Sample(torch.zeros(3, 70, 90, dtype=torch.uint8), some, "key", 0, 0)
        assert drawn_crop(view_rng(0, 0, 0, 2), sample, config) == (0, 0, 90, 70)


def test_large_images_are_scaled_down_before_they_go_to_the_device(mined_dataset):
    stream = CropStream(open_dataset(mined_dataset), image_domain_config({"max_side": 100}))
    assert max(stream[(0, 0)].image.shape) == 100


def test_a_wrong_setting_is_named():
    with pytest.raises(AlignDetError, match=r"views\.sise: Unexpected keyword argument(.|\n)*known: .*views"):
        image_domain_config({"views.sise": 3, "views.size": 32})
    with pytest.raises(AlignDetError, match=r"crops: Input should be 'images' or 'proposals'"):
        image_domain_config({"crops": "boxes"})


@pytest.mark.parametrize("crops", ["images", "proposals"])
def test_views_drawn_by_a_worker_are_those_of_the_trainer(mined_dataset, crops):
    config = image_domain_config({"crops": crops, "views.size": 16})
    preprocessor = TwoCropPreprocessor(IMAGENET, config.views, config.seed)
    drawn = [CropStream(open_dataset(mined_dataset), config)[3, index] for index in range(4)]
    undrawn = [Sample(s.image, s.boxes, s.key, s.epoch, s.index) for s in drawn]
    assert all(len(sample.views) == 2 for sample in drawn)
    pairs = zip(preprocessor(drawn)["views"], preprocessor(undrawn)["views"], strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
