"""Multi-scale deformable attention (Zhu et al. 2021, eq. 3) on bilinear ``grid_sample``.

mmcv asks for these on CUDA only; on the CPU its wrapper has a formula of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aligndet_train.ops._kernels import wide


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Attend: [B, Q, M·D] from ``value`` [B, S, M, D], S the pixels of all levels, one level after another.

    ``spatial_shapes`` [L, 2] int64 (height, width); ``sampling_locations`` [B, Q, M, L, P, 2] (x, y) with
    [0, 1] spanning a level's outer edges, zero beyond; ``attention_weights`` [B, Q, M, L, P].
    Reads ``spatial_shapes`` back to the host once.
    """
    sizes = spatial_shapes.tolist()
    return _attend(wide(value), sizes, wide(sampling_locations), wide(attention_weights)).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients by value, locations and weights; the samples are computed again to save memory."""
    inputs = [
        wide(given).detach().requires_grad_() for given in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _attend(inputs[0], spatial_shapes.tolist(), inputs[1], inputs[2])
    grads = torch.autograd.grad(output, inputs, wide(grad_output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


def _attend(value: Tensor, sizes: list[list[int]], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, depth = value.shape
    queries = locations.shape[1]
    maps = torch.split(value, [height * width for height, width in sizes], dim=1)
    output = value.new_zeros(batch * heads, depth, queries)
    for level, (height, width) in enumerate(sizes):
        pixels = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width)
        grid = _per_head(locations[:, :, :, level]) * 2 - 1
        sampled = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (sampled * _per_head(weights[:, :, :, level])[:, None]).sum(-1)
    return output.view(batch, heads * depth, queries).transpose(1, 2).contiguous()


def _per_head(tensor: Tensor) -> Tensor:
    """[B, Q, M, ...] as [B·M, Q, ...]."""
    return tensor.transpose(1, 2).flatten(0, 1)
