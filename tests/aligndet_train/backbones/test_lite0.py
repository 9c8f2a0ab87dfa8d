import importlib.util

import pytest
import skimage.data
import timm
import torch
from PIL import Image

from aligndet_train.backbones import TimmBackbone, lite0
from aligndet_train.config import CONFIGS
from proposals.errors import MissingExtraError
from tests.aligndet_train.backbones.shipped_lite0 import FEATURE_STD, MEAN, MODEL_NAME, STD, settings

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TIGER_CAT, ESPRESSO = 282, 967


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    model = timm.create_model(MODEL_NAME, pretrained=False)
    model.load_state_dict(lite0.load_state(), strict=True)
    return model.eval()


def chances(classifier, batch):
    with torch.no_grad():
        return classifier(batch).softmax(1)[0]


def test_every_tensor_of_the_wheel_has_its_place_in_timm(classifier):
    wanted, given = classifier.state_dict(), lite0.load_state()
    assert given.keys() == wanted.keys()
    assert {key: value.shape for key, value in given.items()} == {k: v.shape for k, v in wanted.items()}
    assert len({value.data_ptr() for value in given.values()}) == len(given) == 296


def test_an_unknown_name_is_not_swallowed():
    for key in ("_aux.weight", "_blocks.1._se_reduce.weight", "_blocks.16._bn0.weight"):
        with pytest.raises(KeyError):
            lite0.timm_name(key)


@pytest.mark.parametrize(
    ("name", "label", "at_least"), [("chelsea", TIGER_CAT, 0.35), ("coffee", ESPRESSO, 0.9)]
)
def test_two_photographs_are_named_rightly(classifier, as_batch, name, label, at_least):
    photo = Image.fromarray(getattr(skimage.data, name)())
    chance = chances(classifier, as_batch(photo, MEAN, STD, crop=224))
    assert int(chance.argmax()) == label
    assert float(chance[label]) > at_least


def test_another_normalisation_is_noticed(classifier, as_batch):
    cat, coffee = (Image.fromarray(getattr(skimage.data, name)()) for name in ("chelsea", "coffee"))
    wrong = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop": 224}
    assert int(chances(classifier, as_batch(cat, **wrong)).argmax()) != TIGER_CAT
    right = chances(classifier, as_batch(coffee, MEAN, STD, crop=224))[ESPRESSO]
    assert float(right - chances(classifier, as_batch(coffee, **wrong))[ESPRESSO]) > 0.1


def test_scaled_taps_deviate_by_about_one(photo, as_batch):
    backbone = TimmBackbone(MODEL_NAME, (1, 2, 3, 4), weights=lite0.SOURCE, feature_scale=FEATURE_STD)
    backbone.init_weights()
    with torch.no_grad():
        taps = backbone.eval()(as_batch(photo, MEAN, STD))
    for tap, channels in zip(taps, (24, 40, 112, 320), strict=True):
        assert tap.shape[1] == channels
        assert 0.7 < float(tap.std()) < 1.4


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*_lite0.py")), ids=lambda path: path.stem)
def test_every_shipped_config_has_the_settings_that_are_tried_here(config):
    found = settings(config)
    assert (found["model_name"], found["mean"], found["std"]) == (MODEL_NAME, MEAN, STD)
    assert found["scales"].items() <= dict(enumerate(FEATURE_STD, start=1)).items()


def test_a_missing_wheel_names_its_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'aligndet\[demo\]'"):
        lite0.load_state()
