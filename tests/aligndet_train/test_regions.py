"""Region features: RoIAlign against its definition, whatever the image's size; the same in every process."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from PIL import Image
from torch.backends import cudnn
from torch.nn.functional import grid_sample

from aligndet_train.regions import RegionEncoder, region_settings
from proposals.errors import AlignDetError

TINY = str(Path(__file__).parents[1] / "configs" / "tiny_fcos.py")


@pytest.fixture(scope="module")
def encoder():
    return RegionEncoder(region_settings(TINY, {}, 96, 192))


def literal_input(preprocessor, bgr, size):
    """[1, 3, h, w] float32: RGB where the config says so, resized by Pillow, normalised, zeros up to 32 px."""
    channels = bgr[:, :, ::-1] if preprocessor["bgr_to_rgb"] else bgr
    # Pillow's float images: its bilinear filter widens where an image shrinks, and rounds nothing.
    resized = [
        np.asarray(
            Image.fromarray(np.float32(channels[:, :, i])).resize(size[::-1], Image.Resampling.BILINEAR)
        )
        for i in range(3)
    ]
    normal = (np.stack(resized, axis=2) - preprocessor["mean"]) / preprocessor["std"]
    canvas = np.zeros((-(-size[0] // 32) * 32, -(-size[1] // 32) * 32, 3), np.float32)
    canvas[: size[0], : size[1]] = normal
    return torch.from_numpy(canvas).permute(2, 0, 1)[None]


def literal(encoder, bgr, box):
    """The mean of 14 x 14 bilinear samples of the last map, spread evenly over the box."""
    height, width = bgr.shape[:2]
    factor = min(96 / min(height, width), 192 / max(height, width))
    size = round(height * factor), round(width * factor)
    with torch.no_grad():
        features = encoder._backbone(literal_input(encoder.settings.data_preprocessor, bgr, size))[
            -1
        ].double()
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


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("shape", [(150, 200), (75, 40), (400, 90)])
def test_features_are_the_mean_of_bilinear_samples(encoder, shape, swapped):
    preprocessor = {"mean": [120.0, 110.0, 90.0], "std": [50.0, 60.0, 80.0], "bgr_to_rgb": swapped}
    encoder = RegionEncoder(dataclasses.replace(encoder.settings, data_preprocessor=preprocessor))
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


@pytest.mark.parametrize("side", ["short_side", "long_side"])
def test_features_of_another_size_have_another_identity(encoder, side):
    other = RegionEncoder(dataclasses.replace(encoder.settings, **{side: 128}))
    assert other.identity() != encoder.identity()


def test_the_same_numbers_in_another_layer_have_another_identity(encoder):
    other = RegionEncoder(encoder.settings)
    assert other.identity() == encoder.identity()
    other._backbone.layer9 = other._backbone.layer4
    del other._backbone.layer4
    assert other.identity() != encoder.identity()


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


def test_weights_of_another_project_are_taken_with_the_images_as_they_were_trained(
    encoder, tmp_path, monkeypatch, capsys
):
    own = {name: value + 1 for name, value in encoder._backbone.state_dict().items()}
    # As torchvision's models: its own classifier beside the backbone, no prefix.
    torch.save({**own, "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}, tmp_path / "r.pth")
    monkeypatch.chdir(tmp_path)
    settings = region_settings(TINY, {}, 96, 192, Path("r.pth"))
    assert "r.pth" in capsys.readouterr().out
    region_settings(TINY, {}, 96, 192, Path("r.pth"), quiet=True)
    assert capsys.readouterr().out == ""
    assert settings.data_preprocessor["mean"] == [123.675, 116.28, 103.53]
    monkeypatch.chdir("/")  # as a worker
    loaded = RegionEncoder(settings)._backbone.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in loaded.items())
    with pytest.raises(AlignDetError, match="both name the backbone's weights"):
        region_settings(TINY, {"model.backbone.init_cfg.checkpoint": "x"}, 96, 192, tmp_path / "r.pth")
    torch.save({"layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(AlignDetError):
        region_settings(TINY, {}, 96, 192, tmp_path / "part.pth")


def test_no_boxes_and_unknown_names(encoder):
    assert encoder.encode(np.zeros((64, 64, 3), np.uint8), np.zeros((0, 4), np.float32)).shape == (0, 64)
    with pytest.raises(AlignDetError, match="no detector named 'resnet'"):
        region_settings("resnet", {}, 96, 192)


@pytest.mark.parametrize(
    ("stock", "backbone"),
    [
        ("yolo/yolov3_d53_8xb8-320-273e_coco", "Darknet"),
        ("centernet/centernet_r18_8xb16-crop512-140e_coco", "ResNet"),
        ("mask2former/mask2former_r50_8xb2-lsj-50e_coco", "ResNet"),
        ("solo/solo_r50_fpn_1x_coco", "ResNet"),
        ("rpn/rpn_r50_fpn_1x_coco", "ResNet"),
    ],
)
def test_any_detectors_backbone_is_taken_for_only_that_is_wanted(stock, backbone, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = 'mmdet::{stock}.py'\n")
    settings = region_settings(str(config), {"model.backbone.frozen_stages": 1}, 96, 192)
    assert (settings.backbone["type"], settings.backbone["frozen_stages"]) == (backbone, 1)
    assert settings.data_preprocessor["std"][0] in (58.395, 255.0)


def test_a_config_without_a_backbone_or_its_normalisation_is_refused(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("model = dict(type='SemiBaseDetector', detector=dict(backbone=dict(type='ResNet')))\n")
    with pytest.raises(AlignDetError, match=r"config\.py has no `backbone` in its `model`"):
        region_settings(str(config), {}, 96, 192)
    config.write_text("model = dict(backbone=dict(type='ResNet'))\n")
    with pytest.raises(AlignDetError, match=r"config\.py has no `data_preprocessor` in its `model`"):
        region_settings(str(config), {}, 96, 192)
    config.write_text(
        config.read_text() + "data_preprocessor = dict(type='DetDataPreprocessor', mean=[1, 2, 3])\n"
    )
    assert region_settings(str(config), {}, 96, 192).data_preprocessor["mean"] == [1, 2, 3]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module that registers a backbone; this process has the folder on its path."""
    (tmp_path / "own_backbones.py").write_text(
        "from mmdet.models import ResNet\nfrom mmdet.registry import MODELS\n\n\n"
        "@MODELS.register_module()\nclass OwnResNet(ResNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget():
    """Leave this process as one that has not read the config."""
    sys.modules.pop("own_backbones", None)
    MODELS.module_dict.pop("OwnResNet", None)


def own_config(folder):
    config = folder / "own.py"
    config.write_text(
        f"_base_ = {TINY!r}\ncustom_imports = dict(imports=['own_backbones'])\n"
        "model = dict(backbone=dict(type='OwnResNet'))\n"
    )
    return str(config)


def test_a_worker_imports_what_the_config_imported(own_module):
    settings = region_settings(own_config(own_module), {}, 96, 192)
    forget()
    encoder = RegionEncoder(settings)
    assert type(encoder._backbone).__module__ == "own_backbones"


def test_an_import_that_fails_in_a_worker_is_named(own_module):
    settings = region_settings(own_config(own_module), {}, 96, 192)
    (own_module / "own_backbones.py").unlink()
    forget()
    with pytest.raises(AlignDetError, match=r"custom_imports \(\['own_backbones'\]\) failed .* PYTHONPATH"):
        RegionEncoder(settings)


def test_plain_configs_import_nothing_whatever_the_options(own_module):
    Config.fromfile(TINY).dump(own_module / "plain.json")
    options = {"custom_imports.imports": ["own_backbones"]}
    assert region_settings(str(own_module / "plain.json"), options, 96, 192).custom_imports == {}
    assert "own_backbones" not in str(region_settings("fcos_lite0", options, 96, 192).custom_imports)
