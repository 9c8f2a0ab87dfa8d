"""What CUDA's autocast refuses, refused on the CPU."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class RefusalsOfCuda(TorchFunctionMode):
    """CUDA's autocast raises in ``binary_cross_entropy``, whatever it is given; the CPU's would compute it."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.nn.functional.binary_cross_entropy and torch.is_autocast_enabled("cpu"):
            raise RuntimeError("binary_cross_entropy is unsafe to autocast")
        return function(*args, **(kwargs or {}))
