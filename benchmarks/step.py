"""Images per second of the box-domain step on one device, data from a real proposal dataset.

python benchmarks/step.py --data OUT --steps 100 --batch-size 8 --amp [--detector fcos faster_rcnn]

Without --small the release's sizes are used (short side 640-800, long side <= 1333), random backbone weights (the
arithmetic is the same). Prints one line per detector: images/s after warm-up, the share of time spent waiting for
data, peak GPU memory, and the losses of the first and last steps.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from mmengine.device import get_device

from aligndet_train.box_domain import build_pretrainer
from aligndet_train.config import RunConfig, load_run_config, shipped_config
from aligndet_train.schedules import warmup_multistep
from aligndet_train.training import Bfloat16OptimWrapper, OptimWrapper, build_loader, build_optimizer
from proposals.dataset import open_dataset

WARMUP = 10


def measure(run: RunConfig, data: Path, steps: int, workers: int, amp: bool) -> dict[str, Any]:
    """Train ``steps`` steps and time all but the first few."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model = build_pretrainer(run.stock_model, run.pretrain).to(get_device())
    model.train()
    optimizer = build_optimizer(model, run.pretrain, world_size=1)
    wrapper = (Bfloat16OptimWrapper if amp else OptimWrapper)(
        optimizer=optimizer, clip_grad=run.pretrain.clip_grad and {"max_norm": run.pretrain.clip_grad}
    )
    factors = warmup_multistep(steps, warmup=steps // 5, warmup_ratio=1e-3, milestones=(), gamma=0.1)
    batches = iter(build_loader(open_dataset(data), run.pretrain, steps=steps, workers=workers))
    waited, logs = 0.0, []
    for step in range(steps):
        if step == min(WARMUP, steps - 1):
            synchronize()
            started, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * float(factors[step])
        logs.append(model.train_step(batch, wrapper))
        model.momentum_step(0.996)
    synchronize()
    seconds = time.perf_counter() - started
    timed = steps - min(WARMUP, steps - 1)
    return {
        "detector": run.name,
        "images_per_second": round(timed * run.pretrain.batch_size / seconds, 1),
        "data_wait_percent": round(100 * waited / seconds, 1),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)
        if torch.cuda.is_available()
        else None,
        "first": figures(logs[0]),
        "last": figures(logs[-1]),
    }


def figures(log: dict[str, torch.Tensor]) -> dict[str, float]:
    """The logged scalars as numbers."""
    return {name: round(float(value), 3) for name, value in log.items()}


def synchronize() -> None:
    """Wait for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--detector", nargs="+", default=["fcos", "faster_rcnn"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--small", action="store_true", help="short side 224-320: for a CPU")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    for name in arguments.detector:
        overrides: dict[str, Any] = {"batch_size": arguments.batch_size}
        if arguments.small:
            overrides["views"] = {"short_sides": (224, 256, 288, 320), "long_side": 448}
        options = {"model.backbone.init_cfg": None}
        run = load_run_config(shipped_config(name), overrides, options)
        print(
            json.dumps(measure(run, arguments.data, arguments.steps, arguments.workers, arguments.amp)),
            flush=True,
        )


if __name__ == "__main__":
    main()
