"""The order in which weights lie in memory while they are trained: NHWC, where a stage has it or a run asks for it."""

from typing import Any

import torch
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn


class ChannelsLastHook(Hook):
    """Keeps weights in NHWC order from the first step on, and in checkpoints as everyone else has them."""

    def before_train(self, runner: Runner) -> None:
        """Behind what loads weights and resumes."""
        order_weights(runner.model)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Else safetensors, for one, would not take what is saved."""
        checkpoint["state_dict"] = {
            name: value.contiguous() for name, value in checkpoint["state_dict"].items()
        }


def order_weights(model: nn.Module) -> None:
    """Put the weights of convolutions into NHWC order, and so what they give; only the rounding of sums differs."""
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        # Weight standardisation takes its weights as one row a filter, as they lie.
        if isinstance(module, ConvWS2d | ConvAWS2d):
            module.to(memory_format=torch.contiguous_format)
