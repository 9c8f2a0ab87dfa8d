"""What torch.load must trust to read a checkpoint that mmengine wrote."""

from collections.abc import Callable
from functools import cache
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch


@cache
def trust_mmengine_checkpoints() -> None:
    """Name the few harmless types in mmengine's checkpoints, so ``weights_only=True`` reads them.

    Since torch 2.6 that is the default, and mmengine 0.10 passes nothing else. Beside tensors a runner saves
    its message hub: logged scalars, kept as NumPy arrays and numbers.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    torch.serialization.add_safe_globals([HistoryBuffer, np.ndarray, np.dtype, *kinds])
    builders = {"_reconstruct": np.zeros(1).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    # NumPy 2 moved its core, and files written before still name the old place.
    aliases: list[Any] = [
        (builder, f"numpy.{core}.multiarray.{name}")
        for name, builder in builders.items()
        for core in ("core", "_core")
    ]
    torch.serialization.add_safe_globals([*aliases, (_method_of(HistoryBuffer), "builtins.getattr")])


def _method_of(owner: type) -> Callable[[object, str], Any]:
    """A stand-in for getattr that reads ``owner``'s public methods and nothing else."""

    def read(target: object, name: str) -> Any:
        if target is not owner or name.startswith("_"):
            raise UnpicklingError(f"getattr({target!r}, {name!r}) is not part of an mmengine checkpoint")
        return getattr(owner, name)

    return read
