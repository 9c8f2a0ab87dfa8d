"""Views: boxes move with the image, and what is random depends on the sample alone."""

import dataclasses
import math

import mmcv
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2.functional import adjust_sharpness

from aligndet_train.preprocess import InputSpec, TwoViewPreprocessor
from aligndet_train.stream import Sample
from aligndet_train.views import COLOR_OPS, View, ViewConfig, apply_view, draw_view, view_rng
from tests.aligndet_train.fake_gpu import no_waits_on_a_fake_gpu

SPEC = InputSpec(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0), bgr_to_rgb=True, pad_size_divisor=32)
SMALL = ViewConfig(short_sides=(64, 96), long_side=160)


def sample(index: int, height: int = 70, width: int = 90, boxes: int = 3) -> Sample:
    rng = np.random.default_rng(index)
    corners = rng.uniform(0, 40, (boxes, 2))
    xyxy = np.concatenate([corners, corners + rng.uniform(10, 30, (boxes, 2))], axis=1)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return Sample(image, torch.tensor(xyxy, dtype=torch.float32), f"k{index}", epoch=0, index=index)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_follow_what_they_enclose(flip):
    image = torch.zeros(3, 80, 120, dtype=torch.uint8)
    image[:, 20:50, 30:90] = 255
    view = View(height=160, width=180, flip=flip, color_op="identity", magnitude=0.0)
    moved, boxes, rows = apply_view(image, torch.tensor([[30.0, 20.0, 90.0, 50.0]]), view)
    ys, xs = (moved[0] > 127).nonzero(as_tuple=True)
    found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert moved.shape == (3, 160, 180)
    assert rows.tolist() == [0]
    assert (boxes[0] - found).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(35, 51), (80, 120), (133, 171)])
def test_images_are_resized_as_mmdet_resizes_them_for_fine_tuning(height, width):
    image = sample(1, 80, 120).image
    view = View(height=height, width=width, flip=False, color_op="identity", magnitude=0.0)
    ours = apply_view(image, torch.zeros(0, 4), view)[0].permute(1, 2, 0).numpy()
    theirs = mmcv.imresize(image.permute(1, 2, 0).numpy(), (width, height), interpolation="bilinear")
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_flipped_box_is_half_open_too():
    image = torch.zeros(3, 80, 120, dtype=torch.uint8)
    image[:, 20:50, 30:91] = 255
    view = View(height=80, width=120, flip=True, color_op="identity", magnitude=0.0)
    moved, boxes, _ = apply_view(image, torch.tensor([[30.0, 20.0, 91.0, 50.0]]), view)
    ys, xs = moved[0].nonzero(as_tuple=True)
    assert boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_vanishing_boxes_are_dropped_and_the_others_keep_their_rows():
    view = View(height=20, width=20, flip=False, color_op="identity", magnitude=0.0)
    boxes = torch.tensor([[0.0, 0.0, 5.0, 90.0], [0.0, 0.0, 90.0, 90.0], [3.0, 3.0, 3.0, 40.0]])
    _, moved, rows = apply_view(torch.zeros(3, 200, 200, dtype=torch.uint8), boxes, view)
    assert rows.tolist() == [1]
    assert moved.tolist() == [[0.0, 0.0, 9.0, 9.0]]


def test_a_box_must_be_wider_and_higher_than_a_pixel():
    view = View(height=50, width=50, flip=False, color_op="identity", magnitude=0.0)
    boxes = torch.tensor([[4.0, 4.0, 5.0, 40.0], [4.0, 4.0, 40.0, 5.0], [4.0, 4.0, 5.5, 5.5]])
    assert apply_view(torch.zeros(3, 50, 50, dtype=torch.uint8), boxes, view)[2].tolist() == [2]


@pytest.mark.parametrize("op", COLOR_OPS)
def test_every_colour_operation_changes_colours_only(op):
    image = sample(3).image
    view = View(*image.shape[-2:], flip=False, color_op=op, magnitude=5.0 if op == "posterize" else 0.4)
    changed, _, _ = apply_view(image, torch.zeros(0, 4), view)
    assert changed.dtype == torch.uint8
    assert changed.shape == image.shape
    # Random noise already spans 0..255, so stretching its contrast has nothing to do.
    assert torch.equal(changed, image) == (op in {"identity", "autocontrast"})


LITERAL_COLOURS = {
    "autocontrast": lambda rgb, _: ImageOps.autocontrast(rgb),
    "equalize": lambda rgb, _: ImageOps.equalize(rgb),
    "solarize": ImageOps.solarize,
    "color": lambda rgb, amount: ImageEnhance.Color(rgb).enhance(amount),
    "contrast": lambda rgb, amount: ImageEnhance.Contrast(rgb).enhance(amount),
    "brightness": lambda rgb, amount: ImageEnhance.Brightness(rgb).enhance(amount),
    "sharpness": lambda rgb, amount: ImageEnhance.Sharpness(rgb).enhance(amount),
    "posterize": ImageOps.posterize,
}


@pytest.mark.parametrize(
    ("op", "amount"),
    [
        *((op, amount) for op in ("color", "contrast", "brightness", "sharpness") for amount in (0.3, 1.7)),
        *(("solarize", threshold) for threshold in (70.0, 180.0)),
        *(("posterize", bits) for bits in (4, 5, 6, 7)),
        ("autocontrast", 0.4),
        ("equalize", 0.4),
    ],
)
def test_colour_operations_are_pillows_on_the_rgb_image(op, amount):
    rng = np.random.default_rng(6)
    # Reddish and pale: channels in another order have other greys, and there is contrast to stretch.
    rgb = np.stack([rng.integers(low, low + 100, (60, 80)) for low in (120, 60, 20)], axis=2).astype(np.uint8)
    bgr = torch.from_numpy(rgb[:, :, ::-1].copy()).permute(2, 0, 1)
    view = View(60, 80, flip=False, color_op=op, magnitude=float(amount))
    changed = apply_view(bgr, torch.zeros(0, 4), view)[0].permute(1, 2, 0).numpy()[:, :, ::-1]
    expected = np.asarray(LITERAL_COLOURS[op](Image.fromarray(rgb), amount))
    # Pillow rounds means and products to whole levels.
    assert np.abs(changed.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9])
@pytest.mark.parametrize("size", [(60, 80), (2, 9), (3, 3)])
def test_sharpness_is_torchvisions(factor, size):
    image = sample(4, *size).image
    view = View(*size, flip=False, color_op="sharpness", magnitude=factor)
    changed, _, _ = apply_view(image, torch.zeros(0, 4), view)
    assert torch.equal(changed, adjust_sharpness(image, factor))


@pytest.mark.parametrize("op", COLOR_OPS)
def test_a_view_is_made_without_waiting_for_the_gpu(op):
    with no_waits_on_a_fake_gpu():
        image = torch.zeros(3, 70, 90, dtype=torch.uint8, device="cuda")
        view = View(96, 120, flip=True, color_op=op, magnitude=5.0 if op == "posterize" else 0.4)
        changed, _, _ = apply_view(image, torch.zeros(3, 4), view)
    assert changed.device.type == "cuda"


@pytest.mark.parametrize("op", COLOR_OPS)
def test_views_are_the_same_under_autocast(op):
    preprocessor = TwoViewPreprocessor(SPEC, dataclasses.replace(SMALL, color_ops=(op,)), seed=1)
    (plain, _), _ = preprocessor([sample(5)])["views"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (half, _), _ = preprocessor([sample(5)])["views"]
    assert torch.equal(plain, half)


def test_drawn_sizes_follow_the_recipe():
    drawn = [draw_view(view_rng(0, 0, i, 0), 480, 640, ViewConfig()) for i in range(300)]
    assert {min(v.height, v.width) for v in drawn} == set(ViewConfig().short_sides)
    assert {v.color_op for v in drawn} == set(COLOR_OPS)
    assert 100 < sum(v.flip for v in drawn) < 200
    wide = draw_view(view_rng(0, 0, 0, 0), 100, 1000, ViewConfig())
    assert (wide.height, wide.width) == (133, 1333)


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 427), (75, 1000), (1000, 75)])
def test_sizes_are_rounded_as_mmdet_rounds_them_for_fine_tuning(height, width):
    for short in ViewConfig().short_sides:
        drawn = draw_view(view_rng(0, 0, 0, 0), height, width, ViewConfig(short_sides=(short,)))
        assert (drawn.width, drawn.height) == mmcv.rescale_size((width, height), (1333, short))


@pytest.mark.parametrize(
    ("op", "config", "low", "high"),
    [
        ("solarize", {}, 0, 255),
        *((op, {}, 0.1, 1.9) for op in ("color", "contrast", "brightness", "sharpness")),
        ("color", {"enhance_range": (0.5, 0.7)}, 0.5, 0.7),
    ],
)
def test_magnitudes_are_uniform_in_their_range(op, config, low, high):
    config = ViewConfig(color_ops=(op,), **config)
    drawn = [draw_view(view_rng(0, 0, i, 0), 48, 64, config).magnitude for i in range(400)]
    assert low <= min(drawn)
    assert max(drawn) <= high
    parts, _ = np.histogram(drawn, bins=10, range=(low, high))
    assert parts.min() > 15


@pytest.mark.parametrize("config", [{}, {"posterize_bits": (1, 5)}])
def test_posterize_keeps_any_number_of_bits_of_its_range(config):
    config = ViewConfig(color_ops=("posterize",), **config)
    drawn = {draw_view(view_rng(0, 0, i, 0), 48, 64, config).magnitude for i in range(100)}
    assert drawn == set(range(*config.posterize_bits))


def test_a_sample_looks_the_same_in_any_batch():
    one_size = dataclasses.replace(SMALL, short_sides=(64,))
    preprocessor = TwoViewPreprocessor(SPEC, one_size, seed=5)
    alone = preprocessor([sample(1)])["views"]
    among = preprocessor([sample(0), sample(1), sample(2)])["views"]
    for (inputs, targets), (more_inputs, more_targets) in zip(alone, among, strict=True):
        height, width = targets[0].img_shape
        assert torch.equal(inputs[0, :, :height, :width], more_inputs[1, :, :height, :width])
        assert torch.equal(targets[0].gt_instances.bboxes, more_targets[1].gt_instances.bboxes)


@pytest.mark.parametrize("changed", [{"epoch": 1}, {"index": 1}])
def test_another_epoch_or_place_draws_other_views_and_other_sampling_seeds(changed):
    preprocessor = TwoViewPreprocessor(SPEC, ViewConfig(short_sides=tuple(range(64, 96))), seed=0)
    seen = []
    for one in (sample(0), dataclasses.replace(sample(0), **changed)):
        views = preprocessor([one])["views"]
        shapes = [target.img_shape for _, (target,) in views]
        seen.append((shapes, [target.gt_instances.sampling_seed for _, (target,) in views]))
    (shapes, seeds), (other_shapes, other_seeds) = seen
    assert all(one != other for one, other in zip(shapes, other_shapes, strict=True))
    assert len({*seeds, *other_seeds}) == 4


def test_the_two_views_differ():
    (first, _), (second, _) = TwoViewPreprocessor(SPEC, SMALL, seed=0)([sample(0)])["views"]
    assert first.shape != second.shape or not torch.equal(first, second)


def test_ids_run_over_the_batch_and_agree_between_views():
    batch = [sample(0, boxes=4), sample(1, boxes=0), sample(2, boxes=300)]
    # Shrunk to nothing in height, this box is lost: its id must stay unused.
    batch[2].boxes[0] = torch.tensor([5.0, 5.0, 60.0, 5.5])
    for inputs, targets in TwoViewPreprocessor(SPEC, SMALL, seed=0)(batch)["views"]:
        ids = [t.gt_instances.labels.tolist() for t in targets]
        assert ids == [[0, 1, 2, 3], [], list(range(5, 304))]
        assert inputs.shape[0] == 3
        assert all(side % 32 == 0 for side in inputs.shape[-2:])


def test_normalisation_uses_the_channel_order_of_the_stock_config():
    image = torch.stack([torch.full((64, 64), v, dtype=torch.uint8) for v in (50, 100, 200)])
    flat = Sample(image, torch.zeros(0, 4), "flat", 0, 0)
    config = ViewConfig(short_sides=(64,), long_side=64, color_ops=("identity",))
    ((inputs, _), _) = TwoViewPreprocessor(SPEC, config, seed=0)([flat])["views"]
    assert inputs[0, :, 5, 5].tolist() == [(200 - 10) / 2, (100 - 20) / 4, (50 - 30) / 8]


def test_a_coarser_canvas_adds_padding_and_changes_nothing_else():
    batch = [sample(0), sample(1, height=90, width=60)]
    fine = TwoViewPreprocessor(SPEC, SMALL, seed=3)(batch)["views"]
    coarse = TwoViewPreprocessor(SPEC, SMALL, seed=3, canvas_multiple=128)(batch)["views"]
    for (inputs, targets), (more_inputs, more_targets) in zip(fine, coarse, strict=True):
        height, width = inputs.shape[-2:]
        assert more_inputs.shape[-2:] == (-(-height // 128) * 128, -(-width // 128) * 128)
        assert torch.equal(more_inputs[:, :, :height, :width], inputs)
        assert more_inputs.sum() == pytest.approx(inputs.sum().item())
        for target, other in zip(targets, more_targets, strict=True):
            assert torch.equal(target.gt_instances.bboxes, other.gt_instances.bboxes)
            assert target.pad_shape == other.pad_shape
            # As mmdet has it: each image's own size, rounded up to the divisor.
            assert target.pad_shape == tuple(math.ceil(side / 32) * 32 for side in target.img_shape)


@pytest.mark.gpu
def test_views_on_the_gpu_are_those_of_the_cpu():
    config = dataclasses.replace(SMALL, color_ops=("identity", "color", "brightness", "solarize"))
    on_cpu = TwoViewPreprocessor(SPEC, config, seed=2)
    on_gpu = TwoViewPreprocessor(SPEC, config, seed=2).cuda()
    batch = [sample(index) for index in range(6)]
    for (inputs, targets), (others, other_targets) in zip(
        on_cpu(batch)["views"], on_gpu(batch)["views"], strict=True
    ):
        # In units of the image: resizing may round the other way, by one level, and an enhancement of up to 1.9
        # doubles that. A level at the threshold of solarize flips: those are few.
        levels = ((inputs - others.cpu()) * on_cpu.std).abs()
        assert (levels > 2).float().mean() < 0.01
        assert levels.mean() < 0.3
        for target, other in zip(targets, other_targets, strict=True):
            assert torch.equal(target.gt_instances.bboxes, other.gt_instances.bboxes.cpu())
            assert torch.equal(target.gt_instances.labels, other.gt_instances.labels.cpu())


def test_whole_numbers_normalise_as_fractions_do():
    whole = InputSpec.from_stock({"mean": [10, 20, 30], "std": [2, 4, 8], "bgr_to_rgb": True})
    first, second = (TwoViewPreprocessor(spec, SMALL, seed=0)([sample(0)]) for spec in (SPEC, whole))
    assert torch.equal(first["views"][0][0], second["views"][0][0])
