"""Running code as on a GPU, without one: shapes and devices only. What the host would wait for is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

aten: Any = torch.ops.aten
_ANSWERS = (aten.nonzero.default, aten._local_scalar_dense.default, aten.masked_select.default)


class WaitError(AssertionError):
    """The host would wait for the device here."""


class _CountedWaits(TorchDispatchMode):
    def __init__(self, allowed: int) -> None:
        super().__init__()
        self._left = allowed

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if _waits(function, args, options):
            if self._left == 0:
                raise WaitError(str(function))
            self._left -= 1
        return function(*args, **options)


@contextmanager
def no_waits_on_a_fake_gpu(*, but: int = 0) -> Iterator[None]:
    """Tensors made inside are fake and may be on "cuda". Copies that block, counts and scalars raise WaitError.

    but: so many of them are allowed.
    """
    with FakeTensorMode(shape_env=ShapeEnv()), _CountedWaits(but):
        yield


def _waits(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    on_gpu = [isinstance(value, Tensor) and value.is_cuda for value in args]
    if function is aten._to_copy.default:
        target = torch.device(options.get("device") or args[0].device)
        return (target.type != args[0].device.type) and not options.get("non_blocking")
    if function is aten.copy_.default:
        blocking = not (args[2] if len(args) > 2 else options.get("non_blocking"))
        return on_gpu[0] != on_gpu[1] and blocking and args[1].ndim > 0
    if function in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        # A mask is counted, unless one number is put where it is set.
        one_number = len(args) > 2 and args[2].device.type == "cpu" and args[2].numel() == 1
        masked = any(mask is not None and mask.dtype == torch.bool for mask in args[1])
        return on_gpu[0] and masked and not one_number
    return function in _ANSWERS and on_gpu[0]
