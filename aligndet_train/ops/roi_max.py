"""RoIAlign that takes the largest of a bin's bilinear samples instead of their mean.

The choice is kept as the sample's row and column in its bin, small integers that survive being stored in
bfloat16; coordinates would not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Chosen = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Axis:
    """Sample positions along one axis: per box the start, the bin size and the samples per bin, each [R]."""

    start: Tensor
    step: Tensor
    samples: Tensor

    def position(self, bins: Tensor, sample: Tensor) -> Tensor:
        """Pixel coordinate of ``sample`` in ``bins``; both broadcast against [R, 1, 1, 1]."""
        start, step, samples = (part[:, None, None, None] for part in (self.start, self.step, self.samples))
        return start + bins * step + (sample + 0.5) * step / samples.clamp(min=1)


def max_align_forward(
    features: Tensor, rois: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest sample [R, C, h, w] of every bin with its row and column (-1 where a bin has no sample).

    ``sampling_ratio`` 0 takes as many samples as the largest box needs, which costs one host sync.
    """
    rows, columns = _axes(rois, bins, scale, sampling_ratio, aligned)
    best = features.new_full((len(rois), features.shape[1], *bins), -torch.inf)
    row, column = torch.full_like(best, -1), torch.full_like(best, -1)
    most = [sampling_ratio] * 2 if sampling_ratio > 0 else _most(rows, columns)
    bin_y, bin_x = _bin_numbers(bins, rois)
    for i in range(most[0]):
        for j in range(most[1]):
            y, x = rows.position(bin_y, bin_y.new_tensor(i)), columns.position(bin_x, bin_x.new_tensor(j))
            value = _sample(features, rois[:, 0].long(), y, x)
            exists = ((i < rows.samples) & (j < columns.samples))[:, None, None, None]
            better = exists & (value > best)
            best = torch.where(better, value, best)
            row, column = row.masked_fill(better, i), column.masked_fill(better, j)
    return best.masked_fill(row < 0, 0), row, column


def max_align_backward(
    grad: Tensor,
    rois: Tensor,
    chosen: Chosen,
    shape: torch.Size,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient [B, C, H, W] by the features, spread over the four pixels round every ``chosen`` sample."""
    row, column = (part.to(grad) for part in chosen)
    bins = (grad.shape[2], grad.shape[3])
    rows, columns = _axes(rois, bins, scale, sampling_ratio, aligned)
    bin_y, bin_x = _bin_numbers(bins, rois)
    y, x = rows.position(bin_y, row), columns.position(bin_x, column)
    plane = rois[:, :1].long() * shape[1] + torch.arange(shape[1], device=grad.device)
    base = plane[:, :, None, None] * (shape[2] * shape[3])
    total = grad.new_zeros(shape.numel())
    for pixel, weight in _corners(y, x, shape[2], shape[3]):
        share = (grad * weight).masked_fill(row < 0, 0)
        total.index_add_(0, (base + pixel).flatten(), share.flatten())
    return total.view(shape)


def _axes(
    rois: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[_Axis, _Axis]:
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    step = (extent if aligned else extent.clamp(min=1)) / extent.new_tensor(bins[::-1])
    samples = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil().clamp(min=0)
    return (
        _Axis(corners[:, 1], step[:, 1], samples[:, 1]),
        _Axis(corners[:, 0], step[:, 0], samples[:, 0]),
    )


def _most(rows: _Axis, columns: _Axis) -> list[int]:
    if not rows.samples.numel():
        return [0, 0]
    most: list[float] = torch.stack([rows.samples.max(), columns.samples.max()]).tolist()
    return [int(count) for count in most]


def _bin_numbers(bins: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    y, x = (torch.arange(count, device=like.device, dtype=like.dtype) for count in bins)
    return y[None, None, :, None], x[None, None, None, :]


def _sample(features: Tensor, image_of: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear samples [R, C, h, w] of ``features`` at ``y`` [R, 1, h, 1] and ``x`` [R, 1, 1, w]."""
    pixels = features.flatten(2).transpose(1, 2)
    total = features.new_zeros(())
    for pixel, weight in _corners(y, x, features.shape[2], features.shape[3]):
        corner = pixels[image_of[:, None, None], pixel[:, 0]]
        total = total + corner.permute(0, 3, 1, 2) * weight
    return total


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Flat pixel index and weight of the four neighbours of (y, x); no weight beyond one pixel outside."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    rows = [(top, 1 - down), ((top + 1).clamp(max=height - 1), down)]
    columns = [(left, 1 - right), ((left + 1).clamp(max=width - 1), right)]
    return [((row * width + column).long(), a * b * inside) for row, a in rows for column, b in columns]
