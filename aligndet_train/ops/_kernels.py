"""torchvision's compiled kernels, and the dtype they are run in."""

from typing import Any

import torch
import torchvision  # noqa: F401  its import registers the kernels
from torch import Tensor

kernels: Any = torch.ops.torchvision


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or unchanged in float64: no kernel has a bfloat16 backward."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
