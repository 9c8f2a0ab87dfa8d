"""Photographs that scikit-image and scikit-learn ship, and what the tests ask of an image."""

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size threads mostly wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["chelsea", "coffee", "rocket"])
def photo(request: pytest.FixtureRequest) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, request.param)())


@pytest.fixture
def as_batch() -> Callable[..., Tensor]:
    """RGB photograph to a normalised [1, 3, H, W] batch; ``crop`` 224 is the centre that ImageNet judges."""

    def convert(photo: Image.Image, mean: tuple, std: tuple, crop: int | None = None) -> Tensor:
        if crop:
            ratio = crop / 0.875 / min(photo.size)
            photo = photo.resize([round(side * ratio) for side in photo.size], Image.Resampling.BICUBIC)
            left, top = ((side - crop) // 2 for side in photo.size)
            photo = photo.crop((left, top, left + crop, top + crop))
        pixels = torch.from_numpy(np.asarray(photo, dtype=np.float32))
        return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]

    return convert
