"""Crops per second of the image-domain stage's network step, as it is (NHWC) and in torch's own order (NCHW).

    python -m benchmarks.image_domain_step --size 48 --batch-size 64 --steps 5   # on a CPU
    python -m benchmarks.image_domain_step --amp --size 112 --batch-size 256 --steps 50 --method moco_v2   # on a GPU

Random views: the arithmetic is the same. Steps of both orders alternate, so that other work on the machine slows both.
The ratio is of the medians. Not in it: drawing the views, and the loader (benchmarks/loader.py).
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from aligndet_train import ops

ops.install()

from mmengine.device import get_device  # noqa: E402

from aligndet_train.backbones.registry import find_backbone  # noqa: E402
from aligndet_train.image_domain.config import CONFIGS, image_domain_config  # noqa: E402
from aligndet_train.image_domain.methods import build_model  # noqa: E402
from aligndet_train.image_domain.training import build_optimizer  # noqa: E402
from aligndet_train.optimizer import wrapped_optimizer  # noqa: E402

WARMUP = 2
ORDERS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Step:
    """A fresh model with its optimizer, weights in the order ``memory_format``."""

    def __init__(self, arguments: argparse.Namespace, memory_format: torch.memory_format) -> None:
        config = image_domain_config(
            {"views.size": arguments.size, "batch_size": arguments.batch_size}, arguments.method
        )
        model = build_model(find_backbone(arguments.backbone), config)
        self.model = model.to(get_device(), memory_format=memory_format).train()
        self.optimizer = wrapped_optimizer(build_optimizer(model, config, world_size=1), amp=arguments.amp)

    def seconds(self, views: tuple[Tensor, Tensor], step: int) -> float:
        """Of one step, until the device is done."""
        started = time.perf_counter()
        with self.optimizer.optim_context(self.model):
            loss, _ = self.model.parse_losses(self.model(views))
        self.optimizer.update_params(loss)
        self.model.after_step(step)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--method", choices=sorted(CONFIGS), default="simsiam")
    parser.add_argument("--size", type=int, default=112, help="px of a view")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--amp", action="store_true", help="bfloat16")
    arguments = parser.parse_args()
    steps = {name: Step(arguments, order) for name, order in ORDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARMUP + arguments.steps):
        shape = (arguments.batch_size, 3, arguments.size, arguments.size)
        views = (torch.randn(shape, device=get_device()), torch.randn(shape, device=get_device()))
        for name, step in steps.items():
            times[name].append(step.seconds(views, number))
    middle = {name: median(taken[WARMUP:]) for name, taken in times.items()}
    for name, taken in middle.items():
        print(f"{name}: {taken:.3f} s a step, {arguments.batch_size / taken:.1f} crops/s")
    print(f"NHWC makes {middle['NCHW'] / middle['NHWC']:.2f} times the steps of NCHW")


if __name__ == "__main__":
    main()
