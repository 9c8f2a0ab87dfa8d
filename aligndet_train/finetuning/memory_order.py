"""The order in which a detector's weights lie in memory."""

import torch
from mmengine.model import is_model_wrapper
from torch import nn


def order_for_device(model: nn.Module) -> None:
    """On a CPU keep the weights of convolutions in NHWC order, and so what they give.

    What they are written for (benchmarks/memory_order.py has the ratio); only the rounding of sums differs. With a GPU,
    where it was not timed, and under a launcher ``model`` stays as it is.
    """
    if not is_model_wrapper(model) and next(model.parameters()).device.type == "cpu":
        model.to(memory_format=torch.channels_last)
