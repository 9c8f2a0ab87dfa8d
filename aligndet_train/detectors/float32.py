"""Modules that compute in float32 under autocast: bfloat16 has 8 bits, so a coordinate in it is off by pixels."""

from typing import Any

import torch
from torch import Tensor, nn


class _Float32:
    """Put before a module's own class: inputs are widened, autocast is off inside."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            wide = {name: _wide(value) for name, value in kwargs.items()}
            return super().forward(*map(_wide, args), **wide)  # type: ignore[misc]


def keep_float32(module: nn.Module) -> None:
    """Let ``module`` compute in float32 wherever it is called from; parameters and names stay as they are."""
    kind = type(module)
    if not issubclass(kind, _Float32):
        module.__class__ = type(f"Float32{kind.__name__}", (_Float32, kind), {})


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    return [_wide(item) for item in value] if isinstance(value, list) else value
