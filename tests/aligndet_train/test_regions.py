"""Region features: RoIAlign against its definition, whatever the image's size; the same in every process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.backends import cudnn
from torch.nn.functional import grid_sample

from aligndet_train.regions import RegionEncoder, region_settings
from proposals.errors import AlignDetError

TINY = str(Path(__file__).parents[1] / "configs" / "tiny_fcos.py")


@pytest.fixture(scope="module")
def encoder():
    return RegionEncoder(region_settings(TINY, {}, 96, 192))


def literal(encoder, bgr, box):
    """The mean of 14 x 14 bilinear samples of the last map, spread evenly over the box."""
    height, width = bgr.shape[:2]
    factor = min(96 / min(height, width), 192 / max(height, width))
    size = round(height * factor), round(width * factor)
    with torch.no_grad():
        image = torch.from_numpy(bgr).permute(2, 0, 1)
        features = encoder._backbone(encoder._input(image, size))[-1].double()
    stride = 32
    x1, y1, x2, y2 = box * np.array([size[1] / width, size[0] / height] * 2) / stride
    steps = (np.arange(14) + 0.5) / 14
    xs, ys = np.meshgrid(x1 + steps * (x2 - x1), y1 + steps * (y2 - y1))
    rows, columns = features.shape[-2:]
    # Beyond the centres of the outer pixels RoIAlign repeats them.
    grid = np.stack([2 * xs / columns - 1, 2 * ys / rows - 1], axis=-1)
    sampled = grid_sample(
        features, torch.tensor(grid)[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.mean(dim=(2, 3))[0].numpy()


@pytest.mark.parametrize("shape", [(150, 200), (75, 40), (400, 90)])
def test_features_are_the_mean_of_bilinear_samples(encoder, shape):
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = shape
    boxes = np.array([[0, 0, width, height], [3, 5, width / 2, height / 3], [1, 1, 4, 4]], np.float32)
    found = encoder.encode(bgr, boxes)
    assert found.dtype == np.float16
    for row, box in zip(found, boxes, strict=True):
        assert row == pytest.approx(literal(encoder, bgr, box), rel=2e-3, abs=2e-3)


def test_another_encoder_gives_the_same_bytes_and_identity(encoder):
    other = RegionEncoder(region_settings(TINY, {}, 96, 192))
    bgr = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 50, 60], [20, 30, 160, 120]], np.float32)
    assert other.identity() == encoder.identity()
    assert np.array_equal(other.encode(bgr, boxes), encoder.encode(bgr, boxes))
    wider = RegionEncoder(region_settings(TINY, {"model.backbone.base_channels": 16}, 96, 192))
    assert wider.identity() != encoder.identity()


def test_convolutions_are_exact_on_any_gpu_and_other_code_keeps_its_settings(encoder):
    seen = []
    hook = encoder._backbone.register_forward_hook(
        lambda *_: seen.append((cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32))
    )
    before = (cudnn.deterministic, cudnn.allow_tf32)
    encoder.encode(np.zeros((64, 64, 3), np.uint8), np.zeros((0, 4), np.float32))
    hook.remove()
    assert seen == [(True, True, False)]
    assert (cudnn.deterministic, cudnn.allow_tf32) == before


def test_no_boxes_and_unknown_names(encoder):
    assert encoder.encode(np.zeros((64, 64, 3), np.uint8), np.zeros((0, 4), np.float32)).shape == (0, 64)
    with pytest.raises(AlignDetError, match="no detector named 'resnet'"):
        region_settings("resnet", {}, 96, 192)
