"""The two halves of a convolution computed only where a mask is set (mmcv's MaskedConv2d, inference only)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write into ``data_col`` [C·kh·kw, n] the windows of ``features`` [1, C, H, W] at n output positions."""
    padded = F.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=mask_h_idx.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=mask_w_idx.device)[:, None]
    data_col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    data_col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    output: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write the columns of ``data_col`` [C, n] into ``output`` [1, C, height, width] at n positions."""
    output[0][:, mask_h_idx, mask_w_idx] = data_col.to(output.dtype)
