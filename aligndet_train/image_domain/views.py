"""Two views of an image for the image-domain stage: SimSiam's augmentation, on the device.

What is random is drawn first, on the host, from (seed, epoch, index, view) alone, as in the box-domain stage. Crops
are cut one by one, as their sizes differ; all that follows runs on the whole batch, since hundreds of small kernels
an image would cost more than the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torchvision.transforms.v2 import functional as F

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
_CROP_ATTEMPTS = 10
# ITU-R 601 luma, rounded as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)


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
    """[B, 3, size, size] float32 RGB in [0, 1], from ``images`` [3, H, W] uint8 BGR, on their device."""
    with torch.autocast(images[0].device.type, enabled=False):
        batch = torch.stack([_cut(image, view, size) for image, view in zip(images, views, strict=True)])
        batch = batch.flip(1).float() / 255
        _jitter(batch, [view.jitter for view in views])
        _on_rows(batch, [view.gray for view in views], lambda rows: _luma(rows).expand_as(rows))
        sigmas = {row: view.sigma for row, view in enumerate(views) if view.sigma is not None}
        if sigmas:
            blurred = _sent(list(sigmas), batch)
            batch[blurred] = _blur(batch[blurred], _sent(list(sigmas.values()), batch))
    return batch


def _draw_crop(
    rng: np.random.Generator, height: int, width: int, config: ImageViewConfig
) -> tuple[int, int, int, int]:
    """(top, left, height, width): the first of ten drawn that fits, else the largest central one of a legal ratio."""
    low, high = np.log(config.ratio)
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(*config.scale)
        ratio = float(np.exp(rng.uniform(low, high)))
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            return top, int(rng.integers(width - crop_width + 1)), crop_height, crop_width
    crop_width = max(1, min(width, round(height * config.ratio[1])))
    crop_height = max(1, min(height, round(width / config.ratio[0])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _draw_jitter(rng: np.random.Generator, config: ImageViewConfig) -> Jitter:
    spread = (config.brightness, config.contrast, config.saturation)
    factors = [float(rng.uniform(max(0.0, 1 - amount), 1 + amount)) for amount in spread]
    hue = float(rng.uniform(-config.hue, config.hue))
    return Jitter((factors[0], factors[1], factors[2], hue), tuple(int(op) for op in rng.permutation(4)))


def _cut(image: Tensor, view: ImageView, size: int) -> Tensor:
    box = (view.top, view.left, view.height, view.width)
    cut: Tensor = F.resized_crop(image, *box, size=[size, size], antialias=True)
    return cut.flip(-1) if view.flip else cut


def _on_rows(batch: Tensor, chosen: Sequence[bool], operation: Callable[[Tensor], Tensor]) -> None:
    """Replace the chosen rows of ``batch`` by the operation's result; chosen on the host, so nothing is waited for."""
    rows = [row for row, yes in enumerate(chosen) if yes]
    if rows:
        index = _sent(rows, batch)
        batch[index] = operation(batch[index])


def _sent(values: Sequence[float], batch: Tensor) -> Tensor:
    """``values`` [N], int64 if they are integers, else float32, on the device of ``batch``, without waiting for it.

    An index that is a list, or ``new_tensor``, would wait.
    """
    return torch.tensor(values).to(batch.device, non_blocking=True)


def _jitter(batch: Tensor, drawn: Sequence[Jitter | None]) -> None:
    """The four operations on every row that has them, each row in its own order."""
    for place in range(4):
        for number, operation in enumerate(_JITTER_OPS):
            rows = [i for i, one in enumerate(drawn) if one is not None and one.order[place] == number]
            if rows:
                factors = [one.factors[number] for one in (drawn[i] for i in rows) if one is not None]
                index = _sent(rows, batch)
                batch[index] = operation(batch[index], _sent(factors, batch).view(-1, 1, 1, 1))


def _luma(batch: Tensor) -> Tensor:
    return (batch * _sent(_LUMA, batch).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _blend(batch: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    return (factor * batch + (1 - factor) * other).clamp(0, 1)


def _brightness(batch: Tensor, factor: Tensor) -> Tensor:
    return _blend(batch, 0.0, factor)


def _contrast(batch: Tensor, factor: Tensor) -> Tensor:
    return _blend(batch, _luma(batch).mean(dim=(1, 2, 3), keepdim=True), factor)


def _saturation(batch: Tensor, factor: Tensor) -> Tensor:
    return _blend(batch, _luma(batch), factor)


def _hue(batch: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` of a full turn, in the HSV hexagon."""
    value, low = batch.amax(dim=1, keepdim=True), batch.amin(dim=1, keepdim=True)
    chroma = value - low
    red, green, blue = batch[:, 0:1], batch[:, 1:2], batch[:, 2:3]
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + 6 * shift
    wheel = (_sent((5.0, 3.0, 1.0), batch).view(1, 3, 1, 1) + turned) % 6
    return (value - chroma * torch.minimum(wheel, 4 - wheel).clamp(0, 1)).clamp(0, 1)


_JITTER_OPS = (_brightness, _contrast, _saturation, _hue)


def _blur(batch: Tensor, sigmas: Tensor) -> Tensor:
    """A Gaussian a row, of ``sigmas`` [B]; separable, reflected at the border, a tenth of the image wide (SimCLR)."""
    count, channels, height, width = batch.shape
    radius = max(1, width // 20)
    offsets = torch.arange(-radius, radius + 1, device=batch.device, dtype=batch.dtype)
    kernels = (-0.5 * (offsets / sigmas[:, None]) ** 2).exp()
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = pad(batch.reshape(1, -1, height, width), (radius,) * 4, mode="reflect")
    rows = conv2d(planes, kernels[:, None, None, :], groups=count * channels)
    return conv2d(rows, kernels[:, None, :, None], groups=count * channels).view_as(batch)
