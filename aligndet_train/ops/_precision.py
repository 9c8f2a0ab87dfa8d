"""The dtype an op computes in, whatever dtype automatic mixed precision hands it."""

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or unchanged in float64: torchvision's kernels know no bfloat16."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
