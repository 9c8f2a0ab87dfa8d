"""The batched views against torchvision's operations one image at a time; what is drawn is a function of its seed."""

import dataclasses

import numpy as np
import pytest
import skimage.data
import torch
from torchvision.transforms.v2 import functional as F

from aligndet_train.backbones.registry import IMAGENET
from aligndet_train.image_domain.model import TwoCropPreprocessor
from aligndet_train.image_domain.views import (
    ImageView,
    ImageViewConfig,
    Jitter,
    apply_image_views,
    draw_image_view,
)
from aligndet_train.stream import Sample
from aligndet_train.views import view_rng
from tests.aligndet_train.fake_gpu import no_waits_on_a_fake_gpu

SIZE = 48


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    """Photographs as the stream hands them out: [3, H, W] uint8 BGR, of several sizes."""
    photos = (skimage.data.chelsea(), skimage.data.coffee()[::2, ::2], skimage.data.astronaut()[:300:2])
    return [torch.from_numpy(np.ascontiguousarray(p[:, :, ::-1])).permute(2, 0, 1) for p in photos]


def one_by_one(image: torch.Tensor, view: ImageView) -> torch.Tensor:
    """The same transform with torchvision's functions."""
    rgb = image.flip(0)
    out = F.resized_crop(rgb, view.top, view.left, view.height, view.width, [SIZE, SIZE], antialias=True)
    out = (out.flip(-1) if view.flip else out).float() / 255
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    if view.jitter is not None:
        for number in view.jitter.order:
            out = steps[number](out, view.jitter.factors[number])
    if view.gray:
        out = F.rgb_to_grayscale(out, num_output_channels=3)
    if view.sigma is not None:
        side = 2 * max(1, SIZE // 20) + 1
        out = F.gaussian_blur(out, [side, side], [view.sigma, view.sigma])
    return out


def drawn(images: list[torch.Tensor], seed: int) -> list[ImageView]:
    config = ImageViewConfig(size=SIZE)
    return [
        draw_image_view(view_rng(seed, 0, i, 0), image.shape[1], image.shape[2], config)
        for i, image in enumerate(images)
    ]


def test_a_batch_of_views_is_made_without_waiting_for_the_gpu():
    jitter = Jitter((1.2, 0.8, 1.1, 0.05), (2, 0, 3, 1))
    views = [
        ImageView(0, 0, 40, 40, flip=True, jitter=jitter, gray=False, sigma=1.0),
        ImageView(0, 0, 30, 40, flip=False, jitter=None, gray=True, sigma=None),
    ]
    with no_waits_on_a_fake_gpu():
        photos = [torch.zeros(3, 50, 60, dtype=torch.uint8, device="cuda") for _ in views]
        batch = apply_image_views(photos, views, SIZE)
    assert batch.device.type == "cuda"


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_of_views_is_torchvisions_one_by_one(images, seed):
    views = drawn(images, seed)
    batch = apply_image_views(images, views, SIZE)
    expected = torch.stack([one_by_one(i, v) for i, v in zip(images, views, strict=True)])
    assert (batch - expected).abs().max() < 2e-5


@pytest.mark.parametrize("number", range(4))
def test_every_jitter_operation_alone(images, number):
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[number] = 0.37
    base = ImageView(5, 7, 90, 120, False, Jitter(tuple(factors), (0, 1, 2, 3)), False, None)
    views = [dataclasses.replace(base, flip=flip) for flip in (True, False, True)]
    batch = apply_image_views(images, views, SIZE)
    plain = apply_image_views(images, [dataclasses.replace(v, jitter=None) for v in views], SIZE)
    assert (
        batch - torch.stack([one_by_one(i, v) for i, v in zip(images, views, strict=True)])
    ).abs().max() < 2e-5
    assert (batch - plain).abs().max() > 0.05


def test_only_the_rows_that_are_flipped_are(images):
    plain = ImageView(3, 4, 70, 80, flip=False, jitter=None, gray=False, sigma=None)
    flips = (False, True, False)
    batch = apply_image_views(images, [dataclasses.replace(plain, flip=flip) for flip in flips], SIZE)
    expected = apply_image_views(images, [plain] * 3, SIZE)
    expected[1] = expected[1].flip(-1)
    assert torch.equal(batch, expected)


@pytest.mark.parametrize("size", [8, 45, 96])
def test_every_row_is_blurred_by_its_own_sigma_and_reflected_at_the_borders(images, size):
    sharp = ImageView(2, 3, 90, 120, flip=False, jitter=None, gray=False, sigma=None)
    sigmas = (0.1, 2.0, 0.7)
    batch = apply_image_views(images, [dataclasses.replace(sharp, sigma=sigma) for sigma in sigmas], size)
    side = 2 * max(1, size // 20) + 1
    unblurred = apply_image_views(images, [sharp] * 3, size)
    expected = [F.gaussian_blur(row, [side, side], [s, s]) for row, s in zip(unblurred, sigmas, strict=True)]
    assert (batch - torch.stack(expected)).abs().max() < 2e-6


def test_several_rounds_of_views_in_one_call_are_the_same_as_one_by_one(images):
    rounds = [drawn(images, seed) for seed in (0, 1, 2)]
    together = apply_image_views(images, [view for one in rounds for view in one], SIZE)
    apart = torch.cat([apply_image_views(images, one, SIZE) for one in rounds])
    assert torch.allclose(together, apart, atol=1e-6)
    assert together.is_contiguous()
    with pytest.raises(ValueError, match="4 views are no whole rounds of 3 images"):
        apply_image_views(images, [*rounds[0], rounds[1][0]], SIZE)


def test_the_preprocessor_draws_the_two_views_of_each_sample_apart(images):
    config = ImageViewConfig(size=SIZE)
    samples = [Sample(image, torch.zeros(0, 4), "key", 2, i) for i, image in enumerate(images)]
    pairs = TwoCropPreprocessor(IMAGENET, config, seed=5)(samples)["views"]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    for number, batch in enumerate(pairs):
        for index, (image, row) in enumerate(zip(images, batch, strict=True)):
            view = draw_image_view(view_rng(5, 2, index, number), image.shape[1], image.shape[2], config)
            assert torch.allclose(row * std + mean, one_by_one(image, view) * 255, atol=0.01)


def test_a_resumed_run_draws_what_earlier_versions_drew():
    view = draw_image_view(view_rng(0, 0, 0, 1), 480, 640, ImageViewConfig())
    factors = (0.8765215525952996, 0.708390132348638, 0.8350496472127064, 0.028220941620784007)
    assert view.jitter is not None
    assert view.jitter.factors == pytest.approx(factors, rel=1e-12)
    assert view.sigma == pytest.approx(0.8008892608687229, rel=1e-12)
    drawn_once = dataclasses.replace(view, jitter=None, sigma=None)
    assert drawn_once == ImageView(18, 52, 349, 386, flip=True, jitter=None, gray=False, sigma=None)
    assert view.jitter.order == (0, 3, 1, 2)


def test_what_is_drawn_depends_on_seed_epoch_index_and_view_alone(images):
    config = ImageViewConfig()
    keys = [
        (seed, epoch, index, view)
        for seed in (0, 1)
        for epoch in (0, 1)
        for index in (0, 1)
        for view in (0, 1)
    ]
    first, again = ([draw_image_view(view_rng(*key), 120, 90, config) for key in keys] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(keys)
    views = drawn(images, 3)
    alone = apply_image_views(images[1:2], views[1:2], SIZE)
    assert torch.allclose(apply_image_views(images, views, SIZE)[1], alone[0], atol=1e-6)


def test_drawn_crops_follow_the_recipe():
    config = ImageViewConfig()
    views = [draw_image_view(view_rng(0, 0, i, 0), 480, 640, config) for i in range(2000)]
    areas = np.array([v.height * v.width / (480 * 640) for v in views])
    ratios = np.array([v.width / v.height for v in views])
    assert all(v.top + v.height <= 480 and v.left + v.width <= 640 for v in views)
    # The last row and the last column of the image are reached by crops that are smaller than it.
    assert any(v.top + v.height == 480 for v in views if v.height < 480)
    assert any(v.left + v.width == 640 for v in views if v.width < 640)
    assert 0.19 < areas.min() < 0.23
    assert 0.9 < areas.max() <= 1
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    for share, wanted in (
        (np.mean([v.flip for v in views]), 0.5),
        (np.mean([v.jitter is not None for v in views]), 0.8),
        (np.mean([v.gray for v in views]), 0.2),
        (np.mean([v.sigma is not None for v in views]), 0.5),
    ):
        assert share == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (400, 2), (8, 8)])
def test_strips_and_dots_still_give_a_view(height, width):
    view = draw_image_view(view_rng(0, 0, 0, 0), height, width, ImageViewConfig())
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    out = apply_image_views([image], [view], SIZE)
    assert out.shape == (1, 3, SIZE, SIZE)
    assert out.isfinite().all()
