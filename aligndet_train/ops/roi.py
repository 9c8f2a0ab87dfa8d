"""RoIAlign (He et al. 2017) and RoIPool (Girshick 2015), called the way mmcv 2.1 calls its compiled ops.

Averages run on torchvision's kernel, on the CPU in float32 on our own (``roi_kernel``). Its RoIPool rounds the box
where mmcv keeps fractions, and it has no RoIAlign by maximum, so those two are written with tensor operations.
"""

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from aligndet_train.ops._kernels import kernels, wide
from aligndet_train.ops.roi_max import max_align_backward, max_align_forward
from proposals.selective_search.cache import compile_lock

_MAX = 0


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write into ``output`` [R, C, h, w] samples of ``features`` [B, C, H, W] in ``rois`` [R, 5].

    A row of ``rois`` is an image's index and a box (xyxy). ``pool_mode`` 1 averages a bin's
    samples; 0 takes the largest and notes its row and column among them in ``argmax_y`` and ``argmax_x``,
    each [R, C, h, w].
    """
    bins = (aligned_height, aligned_width)
    if pool_mode == _MAX:
        results = max_align_forward(wide(features), wide(rois), bins, spatial_scale, sampling_ratio, aligned)
        for target, result in zip((output, argmax_y, argmax_x), results, strict=True):
            target.copy_(result)
        return
    pixels = wide(features)
    boxes = wide(rois).to(pixels)
    if _float32_on_cpu(pixels):
        own = _compiled()
        grid = own.Grid(*bins, spatial_scale, sampling_ratio, aligned)
        output.copy_(own.align(pixels, boxes, grid))
    else:
        output.copy_(kernels.roi_align(pixels, boxes, spatial_scale, *bins, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write into ``grad_input`` [B, C, H, W] the gradient of roi_align_forward by its features."""
    bins, grad = (aligned_height, aligned_width), wide(grad_output)
    boxes = wide(rois).to(grad)
    if pool_mode == _MAX:
        chosen = (argmax_y, argmax_x)
        shape = grad_input.shape
        result = max_align_backward(grad, boxes, chosen, shape, spatial_scale, sampling_ratio, aligned)
    elif _float32_on_cpu(grad):
        own = _compiled()
        grid = own.Grid(*bins, spatial_scale, sampling_ratio, aligned)
        result = own.align_gradient(grad, boxes, grad_input.shape, grid)
    else:
        result = kernels._roi_align_backward(
            grad, boxes, spatial_scale, *bins, *grad_input.shape, sampling_ratio, aligned
        )
    grad_input.copy_(result)


def _float32_on_cpu(tensor: Tensor) -> bool:
    """Whether it is for ``roi_kernel``."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


@functools.cache
def _compiled() -> ModuleType:
    """``roi_kernel``, imported where it is needed: that compiles it, on one of the ranks, or loads it."""
    with compile_lock():
        return import_module("aligndet_train.ops.roi_kernel")


def roi_pool_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write into ``output`` [R, C, h, w] each bin's largest pixel, and into ``argmax`` its index in H·W.

    A bin with no pixel gives 0 and -1. Among equal pixels any may be named.
    """
    image_of = rois[:, 0].long()
    rows = _pixels_of_bins(rois[:, [2, 4]], spatial_scale, pooled_height, features.shape[2])
    columns = _pixels_of_bins(rois[:, [1, 3]], spatial_scale, pooled_width, features.shape[3])
    for index in range(rois.shape[0]):
        pixels = wide(features.index_select(0, image_of[index : index + 1]))[0]
        values, where = _largest(pixels, rows[index], columns[index])
        empty = values.isinf() & (values < 0)
        output[index] = values.masked_fill(empty, 0)
        argmax[index] = where.masked_fill(empty, -1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write into ``grad_input`` [B, C, H, W] each bin's gradient, summed at the pixel it came from."""
    channels, pixels = grad_input.shape[1], grad_input[0, 0].numel()
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    index = plane[:, :, None, None] * pixels + argmax.clamp(min=0)
    grad = wide(grad_output).masked_fill(argmax < 0, 0)
    total = grad.new_zeros(grad_input.numel()).index_add_(0, index.flatten(), grad.flatten())
    grad_input.copy_(total.view_as(grad_input))


def _pixels_of_bins(ends: Tensor, spatial_scale: float, bins: int, size: int) -> Tensor:
    """Which of ``size`` pixels lie in which of ``bins`` bins along one axis: bool [R, bins, size]."""
    low, high = wide(ends)[:, :1] * spatial_scale, (wide(ends)[:, 1:] + 1) * spatial_scale
    step = (high - low) / bins
    number = torch.arange(bins, device=ends.device)
    first, last = (number * step + low).floor(), ((number + 1) * step + low).ceil()
    pixel = torch.arange(size, device=ends.device)
    inside = (pixel >= first[..., None]) & (pixel < last[..., None])
    return inside & (high > low)[..., None]


def _largest(pixels: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Values and flat indices [C, h, w] of the largest of ``pixels`` [C, H, W] under row and column masks."""
    outside = -torch.inf
    by_row = pixels[:, None].masked_fill(~rows[:, :, None], outside).max(dim=2)
    by_bin = by_row.values[:, :, None].masked_fill(~columns, outside).max(dim=3)
    row = by_row.indices.gather(2, by_bin.indices)
    return by_bin.values, row * pixels.shape[2] + by_bin.indices
