"""Two views of an image for the image-domain stage: SimSiam's augmentation, on the device.

What is random is drawn first, on the host, from (seed, epoch, index, view) alone, as in the box-domain stage. Crops
are resized one by one, a kernel each, as their sizes differ; all that follows runs on the whole batch: a kernel costs
the host about 10 us to start, so some an image would cost more than the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor
from torch.nn.functional import interpolate, pad

from aligndet_train.views import view_rng

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
_CROP_ATTEMPTS = 10
# ITU-R 601 luma, rounded as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)
_CONTRAST, _SATURATION, _HUE = 1, 2, 3
# Below it a pixel is gray; far below one step of uint8.
_NO_CHROMA = 1e-12


@validated_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ImageViewConfig:
    """The augmentation; defaults are SimSiam's (that of MoCo v2).

    size: px, of the square output. scale: share of the image's area a crop has. ratio: width / height of a crop.
    brightness, contrast, saturation: factors are uniform in 1 +- this; hue: a shift in +- this of a full turn.
    blur_sigma: px of the output, uniform in this range.
    """

    size: Annotated[int, Field(ge=8)] = 224
    scale: tuple[Share, Share] = (0.2, 1.0)
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    flip_probability: Share = 0.5
    jitter_probability: Share = 0.8
    brightness: Amount = 0.4
    contrast: Amount = 0.4
    saturation: Amount = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    gray_probability: Share = 0.2
    blur_probability: Share = 0.5
    blur_sigma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.1, 2.0)


@dataclass(frozen=True)
class Jitter:
    """Factors (hue: a shift in turns), and the order they apply in: 0 brightness, 1 contrast, 2 saturation, 3 hue."""

    factors: tuple[float, float, float, float]
    order: tuple[int, ...]


_NO_JITTER = Jitter((1.0, 1.0, 1.0, 0.0), (0, 1, 2, 3))


@dataclass(frozen=True)
class ImageView:
    """One drawn transform. top, left, height, width: the crop, px of the image. sigma: None for no blur."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    jitter: Jitter | None
    gray: bool
    sigma: float | None


def draw_two_views(
    seed: int, epoch: int, index: int, image: Tensor, config: ImageViewConfig
) -> tuple[ImageView, ImageView]:
    """Both views of ``image`` [3, H, W]: a function of its sizes and (seed, epoch, index)."""
    height, width = image.shape[1:]
    first, second = (
        draw_image_view(view_rng(seed, epoch, index, number), height, width, config) for number in (0, 1)
    )
    return first, second


def draw_image_view(rng: np.random.Generator, height: int, width: int, config: ImageViewConfig) -> ImageView:
    """Draw the transform of one view of a [height, width] image."""
    top, left, crop_height, crop_width = _draw_crop(rng, height, width, config)
    flip, jitter, gray, blur = rng.random(4)
    return ImageView(
        *(top, left, crop_height, crop_width),
        flip=bool(flip < config.flip_probability),
        jitter=_draw_jitter(rng, config) if jitter < config.jitter_probability else None,
        gray=bool(gray < config.gray_probability),
        sigma=float(rng.uniform(*config.blur_sigma)) if blur < config.blur_probability else None,
    )


def apply_image_views(images: Sequence[Tensor], views: Sequence[ImageView], size: int) -> Tensor:
    """[V, 3, size, size] float32 RGB in [0, 1], from ``images`` [3, H, W] uint8 BGR, on their device.

    views: one an image, or several rounds of them: ``views[i]`` is of ``images[i % len(images)]``. Raises ValueError
    when the last round is incomplete.
    """
    if len(views) % len(images):
        raise ValueError(f"{len(views)} views are no whole rounds of {len(images)} images")
    with torch.autocast(images[0].device.type, enabled=False):
        batch = _crops(images, views, size)
        _jitter(batch, [view.jitter for view in views])
        _on_rows(batch, [view.gray for view in views], lambda rows: _luma(rows).expand_as(rows))
        sigmas = _sent([view.sigma for view in views if view.sigma is not None], batch)
        _on_rows(batch, [view.sigma is not None for view in views], lambda rows: _blur(rows, sigmas))
    return batch


def _draw_crop(
    rng: np.random.Generator, height: int, width: int, config: ImageViewConfig
) -> tuple[int, int, int, int]:
    """(top, left, height, width): the first of ten drawn that fits, else the largest central one of a legal ratio."""
    low, high = np.log(config.ratio).tolist()
    for _ in range(_CROP_ATTEMPTS):
        share, place = rng.random(2).tolist()
        area = height * width * _between(*config.scale, place=share)
        ratio = float(np.exp(_between(low, high, place=place)))
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            return top, int(rng.integers(width - crop_width + 1)), crop_height, crop_width
    crop_width = max(1, min(width, round(height * config.ratio[1])))
    crop_height = max(1, min(height, round(width / config.ratio[0])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _draw_jitter(rng: np.random.Generator, config: ImageViewConfig) -> Jitter:
    brightness, contrast, saturation, hue = rng.random(4).tolist()
    factors = (
        _between(max(0.0, 1 - config.brightness), 1 + config.brightness, place=brightness),
        _between(max(0.0, 1 - config.contrast), 1 + config.contrast, place=contrast),
        _between(max(0.0, 1 - config.saturation), 1 + config.saturation, place=saturation),
        _between(-config.hue, config.hue, place=hue),
    )
    return Jitter(factors, tuple(rng.permutation(4).tolist()))


def _between(low: float, high: float, *, place: float) -> float:
    """What ``rng.uniform`` makes of a number in [0, 1), without the cost of a call of numpy's."""
    return low + (high - low) * place


def _crops(images: Sequence[Tensor], views: Sequence[ImageView], size: int) -> Tensor:
    """[V, 3, size, size] float32 RGB in [0, 1], resized, rounded to steps of 1/255 and flipped."""
    by_image = [_cuts(image, views[i :: len(images)], size) for i, image in enumerate(images)]
    batch = torch.cat([cut for one_round in zip(*by_image, strict=True) for cut in one_round]).contiguous()
    _on_rows(batch, [view.flip for view in views], lambda rows: rows.flip(-1))
    return batch.flip(1).float().round_().div_(255)


def _cuts(image: Tensor, views: Sequence[ImageView], size: int) -> list[Tensor]:
    """[1, 3, size, size] a view; uint8 where torch resamples it, which is on CPUs, else float32, not rounded yet."""
    pixels = image[None].to(torch.uint8 if image.device.type == "cpu" else torch.float32)
    crops = [pixels[..., v.top : v.top + v.height, v.left : v.left + v.width] for v in views]
    return [
        interpolate(crop, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        for crop in crops
    ]


def _on_rows(batch: Tensor, chosen: Sequence[bool], operation: Callable[[Tensor], Tensor]) -> None:
    """Replace the chosen rows of ``batch`` by the operation's result; chosen on the host, so nothing is waited for."""
    rows = [row for row, yes in enumerate(chosen) if yes]
    if rows:
        index = _sent(rows, batch)
        batch[index] = operation(batch[index])


def _sent(values: Sequence[float] | NDArray[np.generic], batch: Tensor) -> Tensor:
    """``values``, int64 if they are integers, else float32, on the device of ``batch``, without waiting for it.

    An index that is a list, or ``new_tensor``, would wait.
    """
    return torch.tensor(values).to(batch.device, non_blocking=True)


def _jitter(batch: Tensor, drawn: Sequence[Jitter | None]) -> None:
    """The four operations on every row that has them, each row in its own order, in place.

    All but the hue blend a row with black, its mean or its luma: one step for all rows, whose factor is 1 where it is
    not their turn.
    """
    jitters = [one or _NO_JITTER for one in drawn]
    order = np.array([one.order for one in jitters])
    factors = np.take_along_axis(np.array([one.factors for one in jitters]), order, axis=1)
    blends = _sent(_blend_weights(order, factors), batch)
    for place in range(4):
        _blend(batch, blends[place])
        turned = (order[:, place] == _HUE) & (factors[:, place] != 0)
        shifts = _sent(factors[turned, place].astype(np.float32), batch).view(-1, 1, 1, 1)
        _on_rows(batch, turned.tolist(), partial(_hue, shift=shifts))


def _blend_weights(order: NDArray[np.int64], factors: NDArray[np.float64]) -> NDArray[np.float32]:
    """[4, 3, V, 1, 1, 1]: in every place, the weights of each row's pixels, of its luma and of the luma's mean.

    order, factors: [V, 4], the operations and their factors by place.
    """
    kept = np.where(order == _HUE, 1.0, factors)
    weights = np.stack([kept, (1 - kept) * (order == _SATURATION), (1 - kept) * (order == _CONTRAST)])
    return weights.transpose(2, 0, 1)[..., None, None, None].astype(np.float32)


def _blend(batch: Tensor, weights: Tensor) -> None:
    kept, of_luma, of_mean = weights
    luma = _luma(batch)
    other = luma * of_luma + luma.mean(dim=(1, 2, 3), keepdim=True) * of_mean
    batch.mul_(kept).add_(other).clamp_(0, 1)


def _luma(batch: Tensor) -> Tensor:
    red, green, blue = batch.chunk(3, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _hue(batch: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` of a full turn, in the HSV hexagon."""
    value = batch.amax(dim=1, keepdim=True)
    chroma = value - batch.amin(dim=1, keepdim=True)
    red, green, blue = batch.chunk(3, dim=1)
    sector = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sector = torch.where(value == red, green - blue, sector) / chroma.clamp(min=_NO_CHROMA)
    channels = torch.arange(5, 0, -2, device=batch.device).view(1, 3, 1, 1)
    wheel = (sector + 6 * shift + channels) % 6
    return (value - chroma * torch.minimum(wheel, 4 - wheel).clamp_(0, 1)).clamp_(0, 1)


def _blur(batch: Tensor, sigmas: Tensor) -> Tensor:
    """A Gaussian a row, of ``sigmas`` [B]; separable, reflected at the border, a tenth of the image wide (SimCLR)."""
    count, channels, size, _ = batch.shape
    bands = _bands(sigmas, size)
    # Columns are turned into rows and filtered, twice.
    for _ in range(2):
        columns = batch.transpose(2, 3).reshape(count, channels * size, size)
        batch = (columns @ bands).view(count, channels, size, size)
    return batch


def _bands(sigmas: Tensor, size: int) -> Tensor:
    """[B, size, size]: column i holds what each pixel of a line adds to pixel i of the blurred line."""
    radius = max(1, size // 20)
    offsets = torch.arange(-radius, radius + 1, device=sigmas.device, dtype=sigmas.dtype)
    kernels = (-0.5 * (offsets / sigmas[:, None]) ** 2).exp()
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    # [pixel, place]: 1 where the line, reflected at its borders, shows the pixel.
    shown = pad(torch.eye(size, device=sigmas.device), (radius, radius), mode="reflect")
    bands: Tensor = torch.tensordot(kernels, shown.unfold(1, len(offsets), 1), dims=([1], [2]))
    return bands
