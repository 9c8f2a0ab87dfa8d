"""What moves the weights: the optimiser of a config, and the precision of the pass before it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn

from aligndet_train.config import PretrainConfig
from proposals.errors import AlignDetError


def build_optimizer(model: nn.Module, config: PretrainConfig, world_size: int) -> torch.optim.Optimizer:
    """The optimiser over trainable parameters only, its rate scaled linearly with the global batch.

    Raises AlignDetError when there is no such optimiser, or it does not take its settings.
    """
    scale = config.batch_size * world_size / config.base_batch_size
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = {**config.optimizer, "lr": config.optimizer["lr"] * scale, "params": parameters}
    try:
        optimizer: torch.optim.Optimizer = OPTIMIZERS.build(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise AlignDetError(
            f"pretrain.optimizer {config.optimizer} cannot be made: {error}. What the config set for an optimizer of "
            "another type stays, unless `_delete_=True` stands beside the new type"
        ) from error
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast. Its range is float32's: no loss scaling, so no wait for the GPU.

    mmengine's AmpOptimWrapper always scales, and refuses the CPU.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Autocast on the model's device, besides what OptimWrapper does."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


class StepOptimWrapper(OptimWrapper):
    """mmengine's, but the norm of the clipped gradients stays on the device until the step's figures are fetched.

    norm: of the last step, before clipping; None until gradients were clipped.
    """

    norm: Tensor | None = None

    def _clip_grad(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        clipped = [p for p in parameters if p.requires_grad and p.grad is not None]
        if clipped:
            self.norm = self.clip_func(clipped, **self.clip_grad_kwargs)


class _Bfloat16StepOptimWrapper(StepOptimWrapper, Bfloat16OptimWrapper):
    pass


def wrapped_optimizer(
    optimizer: torch.optim.Optimizer, *, amp: bool, clip_grad: float | None = None
) -> StepOptimWrapper:
    """``optimizer`` as StreamTrainLoop takes it. clip_grad: the largest L2 norm of all gradients together."""
    clip = None if clip_grad is None else {"max_norm": clip_grad, "norm_type": 2}
    kind = _Bfloat16StepOptimWrapper if amp else StepOptimWrapper
    return kind(optimizer=optimizer, clip_grad=clip)
