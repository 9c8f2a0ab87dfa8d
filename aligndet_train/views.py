"""Two augmented views of an image, and its proposals moved with it (AlignDet section 3.2).

Each view: multi-scale resize, horizontal flip, exactly one colour operation of nine with a random magnitude. Sizes,
operations and their chances are the release's; of the magnitudes, posterize keeps more bits (4 to 7, there 1 to 4).
What is random is drawn first, on the host, from (seed, epoch, sample, view) alone: so a sample's views depend
neither on the batch, rank or worker that handles it nor on where it is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.transforms.v2 import functional as F

ColorOp = Literal[
    "identity", "autocontrast", "equalize", "solarize", "color", "contrast", "brightness", "sharpness", "posterize",
]  # fmt: skip
COLOR_OPS: tuple[ColorOp, ...] = get_args(ColorOp)


@validated_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ViewConfig:
    """How views are drawn. Sizes in pixels; magnitudes uniform in the given half-open range."""

    short_sides: Annotated[tuple[Annotated[int, Field(ge=8)], ...], Field(min_length=1)] = (
        640,
        672,
        704,
        736,
        768,
        800,
    )
    long_side: Annotated[int, Field(ge=8)] = 1333
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    color_ops: Annotated[tuple[ColorOp, ...], Field(min_length=1)] = COLOR_OPS
    enhance_range: tuple[float, float] = (0.1, 1.9)
    posterize_bits: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(le=9)]] = (4, 8)

    @field_validator("enhance_range")
    @classmethod
    def _of_factors(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= ends[0] <= ends[1]:
            raise ValueError("factors are not negative, the first number not above the second")
        return ends

    @field_validator("posterize_bits")
    @classmethod
    def _not_empty(cls, ends: tuple[int, int]) -> tuple[int, int]:
        if not ends[0] < ends[1]:
            raise ValueError("the range is half-open: its first number must be below its second")
        return ends


@dataclass(frozen=True)
class View:
    """One drawn transform: output height and width in pixels, flip, colour operation and its magnitude."""

    height: int
    width: int
    flip: bool
    color_op: str
    magnitude: float


def draw_view(rng: np.random.Generator, height: int, width: int, config: ViewConfig) -> View:
    """Draw the transform of one view of a [height, width] image."""
    short = int(rng.choice(config.short_sides))
    scale = min(config.long_side / max(height, width), short / min(height, width))
    op = str(rng.choice(config.color_ops))
    return View(
        height=max(1, int(height * scale + 0.5)),
        width=max(1, int(width * scale + 0.5)),
        flip=bool(rng.random() < config.flip_probability),
        color_op=op,
        magnitude=_draw_magnitude(rng, op, config),
    )


def view_rng(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The generator of one view of one sample."""
    return np.random.default_rng([seed, epoch, index, view])


def sampling_seed(seed: int, epoch: int, index: int, view: int) -> int:
    """What the detector's samplers draw with in one view of one sample; below 2**32."""
    return int(np.random.SeedSequence([seed, epoch, index, view, 1]).generate_state(1)[0])


def apply_view(image: Tensor, boxes: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Transform ``image`` [3, H, W] uint8 and ``boxes`` [N, 4] float32 xyxy pixels, on their device.

    Returns the image [3, view.height, view.width] uint8, the boxes [M, 4] that survive (wider and higher than one
    pixel), and the rows [M] int64 of ``boxes`` they come from.
    """
    old_height, old_width = image.shape[-2:]
    # As mmdet's own pipelines resize, in fine-tuning and in tests: a smoother image has other features.
    resized = F.resize(image, [view.height, view.width], antialias=False)
    scale = boxes.new_tensor([view.width / old_width, view.height / old_height] * 2)
    moved = boxes * scale
    if view.flip:
        resized = resized.flip(-1)
        moved = torch.stack(
            [view.width - moved[:, 2], moved[:, 1], view.width - moved[:, 0], moved[:, 3]], dim=1
        )
    kept = ((moved[:, 2] - moved[:, 0] > 1) & (moved[:, 3] - moved[:, 1] > 1)).nonzero()[:, 0]
    return _color(resized, view), moved[kept], kept


def _draw_magnitude(rng: np.random.Generator, op: str, config: ViewConfig) -> float:
    if op == "solarize":
        return float(rng.uniform(0, 255))
    if op == "posterize":
        return float(rng.integers(*config.posterize_bits))
    return float(rng.uniform(*config.enhance_range))


def _color(image: Tensor, view: View) -> Tensor:
    """``image`` [3, H, W] uint8 BGR in and out; torchvision's saturation and grey weights expect RGB."""
    rgb = image.flip(0)
    amount = view.magnitude
    operations: dict[str, Callable[[], Tensor]] = {
        "identity": lambda: rgb,
        "autocontrast": lambda: F.autocontrast(rgb),
        "equalize": lambda: F.equalize(rgb),
        "solarize": lambda: F.solarize(rgb, amount),
        "color": lambda: F.adjust_saturation(rgb, amount),
        "contrast": lambda: F.adjust_contrast(rgb, amount),
        "brightness": lambda: F.adjust_brightness(rgb, amount),
        "sharpness": lambda: _sharpened(rgb, amount),
        "posterize": lambda: F.posterize(rgb, int(amount)),
    }
    return operations[view.color_op]().flip(0)


def _sharpened(rgb: Tensor, factor: float) -> Tensor:
    """torchvision's adjust_sharpness of ``rgb`` [3, H, W] uint8, whose kernel is made on the device.

    torchvision copies it there, from a list, and waits.
    """
    if min(rgb.shape[-2:]) <= 2:
        return rgb
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=rgb.device)
    kernel[:, :, 1, 1] = 5 / 13
    pixels = rgb.float()
    inner = pixels[:, 1:-1, 1:-1]
    inner.add_(conv2d(pixels, kernel, groups=3).round_().sub_(inner), alpha=1 - factor)
    return pixels.clamp_(0, 255).to(torch.uint8)
