"""Seconds of a CPU's step of fine-tuning with a detector's weights in NCHW and in NHWC order.

    OMP_NUM_THREADS=1 python -m benchmarks.memory_order fcos_lite0 benchmarks/transfer_configs/faster_rcnn_160px.py

Of each detector two copies, whose steps alternate, on the same random pictures and boxes; the seconds are the
processor's, the ratio is of the medians. Before that their losses are compared.
"""

import argparse
import copy
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

CLASSES, BOXES = 20, 3


def detector(name: str) -> Any:
    """A shipped detector, or that of a config's path, as `aligndet finetune` trains it on a CPU."""
    from aligndet_train import ops

    ops.install()
    from mmengine.registry import DefaultScope

    from aligndet_train.box_domain import build_detector
    from aligndet_train.config import read_config, shipped_config

    path = Path(name)
    stock = read_config(path if path.is_file() else shipped_config(name), {})
    with DefaultScope.overwrite_default_scope("mmdet"):
        return build_detector(stock.model).train()


def batch(images: int, side: int) -> tuple[torch.Tensor, list[Any]]:
    """Pictures [images, 3, side, side] and BOXES boxes in each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    shape, samples = (side, side), []
    for _ in range(images):
        corners = torch.rand(BOXES, 2) * side / 2
        boxes = torch.cat([corners, corners + 16 + torch.rand(BOXES, 2) * side / 3], dim=1)
        meta = {"img_shape": shape, "ori_shape": shape, "batch_input_shape": shape, "pad_shape": shape}
        sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(CLASSES, (BOXES,)))
        samples.append(sample)
    return torch.randn(images, 3, side, side), samples


def step(model: Any, inputs: torch.Tensor, samples: list[Any]) -> tuple[float, float]:
    """Seconds of the processor of a step without its optimizer, and the loss; sampled the same each time."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    began = time.process_time()
    loss, _ = model.parse_losses(model.loss(inputs, samples))
    loss.backward()
    return time.process_time() - began, float(loss.detach())


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Print one row. Ends the process when the losses differ by more than rounding."""
    from aligndet_train.memory_order import order_weights

    orders = {"NCHW": (plain := detector(name)), "NHWC": copy.deepcopy(plain)}
    order_weights(orders["NHWC"])
    data = batch(arguments.batch_size, arguments.size)
    first = [step(model, *data)[1] for model in orders.values()]
    if abs(first[0] - first[1]) > 1e-2 * abs(first[0]):
        raise SystemExit(f"{name}: losses {first}: the order must not change what is computed")
    taken: dict[str, list[float]] = {order: [] for order in orders}
    for _ in range(arguments.steps):
        for order, model in orders.items():
            taken[order].append(step(model, *data)[0])
    middle = {order: median(each) for order, each in taken.items()}
    ratio = middle["NCHW"] / middle["NHWC"]
    print(f"| {Path(name).stem} | {middle['NCHW']:.2f} | {middle['NHWC']:.2f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="+", help="names of shipped ones, or paths of configs")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print("| detector | NCHW, s | NHWC, s | ratio |\n|---|---|---|---|")
    for name in arguments.detectors:
        compare(name, arguments)


if __name__ == "__main__":
    main()
