"""What torch.load must trust to read a checkpoint that mmengine wrote."""

from typing import Any

import numpy as np
import torch


def trust_mmengine_checkpoints() -> None:
    """Name the few harmless types in mmengine's checkpoints, so ``weights_only=True`` reads them.

    Since torch 2.6 ``torch.load`` defaults to that, and mmengine 0.10 passes none. Beside tensors a runner saves its
    message hub: logged scalars, kept as NumPy arrays and numbers.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    reconstruct: Any = np.zeros(1).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    torch.serialization.add_safe_globals([HistoryBuffer, reconstruct, scalar, np.ndarray, np.dtype, *kinds])
