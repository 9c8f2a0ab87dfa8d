"""RoIAlign by averages (He et al. 2017) on the CPU, in float32.

torchvision adds every sample's gradient to four pixels of every channel, one number at a time. Here a pixel's
channels lie side by side, so that one weight serves a whole vector of them; and as a bin is a mean over a grid, its
samples' weights are summed along each axis before any pixel is touched.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proposals.selective_search.jit import helper, kernel

_Floats = NDArray[np.float32]
_Indices = NDArray[np.int64]
# Fewer channels do not fill a thread's vectors.
_LEAST_CHANNELS = 16


class Grid(NamedTuple):
    """Of RoIAlign: output bins (height, width), pixels of the features per unit of a box, samples a bin and axis.

    ratio: 0 takes as many samples as a bin has pixels. aligned: a pixel's centre lies at half its width (mmcv); where
    not, at its corner, and a box is at least one pixel wide and high.
    """

    height: int
    width: int
    scale: float
    ratio: int
    aligned: bool


def align(features: Tensor, rois: Tensor, grid: Grid) -> Tensor:
    """Mean of ``features`` [B, C, H, W] over the bins of ``rois`` [R, 5] (image, xyxy): [R, C, height, width].

    Raises IndexError for a box of an image that is not there.
    """
    _require_images(rois, features.shape[0])
    output = features.new_empty((rois.shape[0], features.shape[1], grid.height, grid.width))
    if not features.numel():
        return output.zero_()
    pixels = features.detach().permute(0, 2, 3, 1).contiguous().numpy()
    boxes, result = _rows(rois), output.numpy()
    _in_threads(lambda first, last: _align(pixels, boxes, result, *grid, first, last), rois.shape[0])
    return output


def align_gradient(gradient: Tensor, rois: Tensor, shape: torch.Size, grid: Grid) -> Tensor:
    """Gradient by features of ``shape`` [B, C, H, W] of what ``align`` gives, ``gradient`` being that by its output.

    The same bytes with any number of threads. Raises as ``align``.
    """
    _require_images(rois, shape[0])
    images, channels, height, width = shape
    total = gradient.new_zeros((images, height, width, channels))
    if not total.numel():
        return total.permute(0, 3, 1, 2)
    given, boxes, result = gradient.detach().contiguous().numpy(), _rows(rois), total.numpy()
    _in_threads(
        lambda first, last: _spread(given, boxes, result, *grid, first, last), channels, _LEAST_CHANNELS
    )
    return total.permute(0, 3, 1, 2)


def _rows(rois: Tensor) -> _Floats:
    rows: _Floats = rois.detach().float().contiguous().numpy()
    return rows


def _require_images(rois: Tensor, images: int) -> None:
    if not rois.shape[0]:
        return
    least, most = (float(end) for end in rois[:, 0].aminmax())
    if not (least >= 0 and most < images):
        raise IndexError(f"RoIs of images {least:g} to {most:g}, where the features are of {images}")


def _in_threads(work: Callable[[int, int], Any], total: int, least: int = 1) -> None:
    """Call ``work`` with the ends of as many parts of ``total`` as torch has threads, none smaller than ``least``."""
    parts = max(1, min(torch.get_num_threads(), total // least))
    if parts == 1:
        work(0, total)
        return
    ends = [total * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, ends[:-1], ends[1:]))


@helper
def _axis(
    start: np.float32, end: np.float32, ratio: int, weights: _Floats, touched: _Indices, aligned: bool
) -> int:
    """Weights [bins, pixels] of one axis of a box, and the first and last pixel [bins, 2] of each bin; samples a bin.

    start, end: of the box, in pixels. A bin no sample of which lies on the map has a first pixel
    behind its last.
    """
    bins, length = weights.shape
    if aligned:
        # Both, though it is their difference that counts: its rounding decides how many samples a bin has.
        start, end = np.float32(start - np.float32(0.5)), np.float32(end - np.float32(0.5))
    size = np.float32(end - start)
    if not aligned:
        size = max(size, np.float32(1))
    step = np.float32(size / np.float32(bins))
    samples = ratio if ratio > 0 else math.ceil(step)
    weights[:] = 0
    for number in range(bins):
        touched[number, 0], touched[number, 1] = length, -1
        first, last = _on_the_map(float(start) + number * float(step), float(step), samples, length)
        for sample in range(first, last):
            inside = np.float32((np.float32(sample) + np.float32(0.5)) * step / np.float32(samples))
            at = np.float32(np.float32(start + np.float32(np.float32(number) * step)) + inside)
            # Said so that a NaN is outside, too.
            if not (at >= -1 and at <= length):
                continue
            at = max(at, np.float32(0))
            pixel = min(int(at), length - 1)
            following = min(pixel + 1, length - 1)
            part = np.float32(at - np.float32(pixel)) if following > pixel else np.float32(0)
            weights[number, pixel] += np.float32(1) - part
            weights[number, following] += part
            touched[number, 0] = min(touched[number, 0], pixel)
            touched[number, 1] = max(touched[number, 1], following)
    return samples


@helper
def _on_the_map(begin: float, size: float, samples: int, length: int) -> tuple[int, int]:
    """The first of a bin's samples that may lie on the map, and one past the last: of a huge box few do."""
    if samples <= length or not size > 0:
        return 0, samples
    spacing = size / samples
    first, last = (-1 - begin) / spacing - 2, (length - begin) / spacing + 2
    return int(min(max(first, 0), samples)), int(min(max(last, 0), samples))


@helper
def _both_axes(
    box: _Floats, scale: float, ratio: int, aligned: bool, rows: _Floats, columns: _Floats,
    touched_rows: _Indices, touched_columns: _Indices,
) -> None:  # fmt: skip
    """Fill the weights of both axes; the rows' hold the mean over the samples, too."""
    down = _axis(np.float32(box[2] * scale), np.float32(box[4] * scale), ratio, rows, touched_rows, aligned)
    across = _axis(
        np.float32(box[1] * scale), np.float32(box[3] * scale), ratio, columns, touched_columns, aligned
    )
    rows /= np.float32(max(float(down) * float(across), 1.0))


@kernel("void(f4[:,:,:,::1],f4[:,::1],f4[:,:,:,::1],i8,i8,f4,i8,b1,i8,i8)")
def _align(
    pixels: _Floats, rois: _Floats, output: _Floats, height: int, width: int, scale: float, ratio: int,
    aligned: bool, first: int, last: int,
) -> None:  # fmt: skip
    """Boxes ``first`` to ``last`` of ``rois``, from ``pixels`` [B, H, W, C]."""
    channels = pixels.shape[3]
    rows, columns = (
        np.empty((height, pixels.shape[1]), np.float32),
        np.empty((width, pixels.shape[2]), np.float32),
    )
    of_rows, of_columns = np.empty((height, 2), np.int64), np.empty((width, 2), np.int64)
    mean = np.empty(channels, np.float32)
    for index in range(first, last):
        _both_axes(rois[index], scale, ratio, aligned, rows, columns, of_rows, of_columns)
        image = pixels[int(rois[index, 0])]
        for down in range(height):
            for across in range(width):
                mean[:] = 0
                for y in range(of_rows[down, 0], of_rows[down, 1] + 1):
                    for x in range(of_columns[across, 0], of_columns[across, 1] + 1):
                        weight = rows[down, y] * columns[across, x]
                        if weight == 0:
                            continue  # between samples that lie more than a pixel apart
                        for channel in range(channels):
                            mean[channel] += weight * image[y, x, channel]
                for channel in range(channels):
                    output[index, channel, down, across] = mean[channel]


@kernel("void(f4[:,:,:,::1],f4[:,::1],f4[:,:,:,::1],i8,i8,f4,i8,b1,i8,i8)")
def _spread(
    gradient: _Floats, rois: _Floats, total: _Floats, height: int, width: int, scale: float, ratio: int,
    aligned: bool, first: int, last: int,
) -> None:  # fmt: skip
    """Add channels ``first`` to ``last`` of all boxes' ``gradient`` [R, C, h, w] to ``total`` [B, H, W, C]."""
    rows, columns = (
        np.empty((height, total.shape[1]), np.float32),
        np.empty((width, total.shape[2]), np.float32),
    )
    of_rows, of_columns = np.empty((height, 2), np.int64), np.empty((width, 2), np.int64)
    bins = np.empty((height, width, last - first), np.float32)
    for index in range(rois.shape[0]):
        _both_axes(rois[index], scale, ratio, aligned, rows, columns, of_rows, of_columns)
        image = total[int(rois[index, 0])]
        for channel in range(last - first):
            for down in range(height):
                for across in range(width):
                    bins[down, across, channel] = gradient[index, first + channel, down, across]
        for down in range(height):
            for across in range(width):
                for y in range(of_rows[down, 0], of_rows[down, 1] + 1):
                    for x in range(of_columns[across, 0], of_columns[across, 1] + 1):
                        weight = rows[down, y] * columns[across, x]
                        if weight == 0:
                            continue
                        for channel in range(last - first):
                            image[y, x, first + channel] += weight * bins[down, across, channel]
