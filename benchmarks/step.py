"""Images per second of the box-domain step against a reference loop, in one run on one device.

    python -m benchmarks.step --data OUT --workers 12                        # on a GPU, 800x1333
    python -m benchmarks.step --data OUT --small --steps 4 --batch-size 2    # on a CPU

Rows: the reference (benchmarks/reference_loop.py, float32, two images a step), ours at the same two images, ours at
every --batch-size, and with --fill at the doubled batch until memory ends. Random backbone weights: the arithmetic is
the same. Timed from the step after --warmup on, for --steps or --seconds, until the device is done. data wait: share
of the time in which the loop waited for the loader. peak: the share of the device's bfloat16 rate (a 8192^3 matrix
product, measured here) that the first step's floating-point operations, counted by torch, stand for. --canvas,
--channels-last and --compile try settings of ours; --compile needs --canvas, and goes through all --steps once before,
untimed. --profile BATCH adds where the time of three steps goes, on the device and on the host.
"""

import argparse
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from aligndet_train import ops

ops.install()

from mmengine.device import get_device  # noqa: E402

from aligndet_train.box_domain import build_pretrainer  # noqa: E402
from aligndet_train.config import RunConfig, load_run_config, shipped_config  # noqa: E402
from aligndet_train.loader import build_loader, workers_ended  # noqa: E402
from aligndet_train.optimizer import build_optimizer, wrapped_optimizer  # noqa: E402
from benchmarks.reference_loop import ReferenceStep  # noqa: E402
from proposals.dataset import ProposalDataset, open_dataset  # noqa: E402

PROFILED = 3


class Row(NamedTuple):
    """One measurement."""

    images_per_second: float
    data_wait: float
    peak_memory: float
    flops_per_second: float


class OurStep:
    """Our model, in bfloat16, with the settings of the command line."""

    def __init__(self, run: RunConfig, device: str) -> None:
        self.model = build_pretrainer(run.stock_model, run.pretrain).to(device)
        self.model.train()
        optimizer = build_optimizer(self.model, run.pretrain, world_size=1)
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        self.wrapper = wrapped_optimizer(optimizer, amp=True, clip_grad=run.pretrain.clip_grad)

    def loader(self, dataset: ProposalDataset, run: RunConfig, steps: int, workers: int) -> Any:
        """The stream."""
        return build_loader(dataset, run.pretrain, steps=steps, workers=workers)

    def step(self, batch: Any) -> Tensor:
        """What mmengine's loop and our hooks do in a step."""
        figures = self.model.train_step(batch, self.wrapper)
        self.model.momentum_step(0.996)
        return torch.stack(list(figures.values())).cpu()[0]


def measure(step: Any, data: Path, run: RunConfig, arguments: argparse.Namespace) -> Row:
    """Run ``warmup`` steps, then ``steps`` more, or as many as ``seconds`` hold."""
    dataset, workers = open_dataset(data), arguments.workers
    if run.pretrain.compile_backbone and isinstance(step, OurStep):
        # The same batches come again below: their shapes are compiled before a step is timed.
        for batch in step.loader(dataset, run, arguments.warmup + arguments.steps, workers):
            step.step(batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    loader = step.loader(dataset, run, arguments.warmup + arguments.steps + PROFILED, workers)
    with workers_ended(loader):
        batches: Iterator[Any] = iter(loader)
        with FlopCounterMode(display=False) as counter:
            step.step(next(batches))
        for _ in range(arguments.warmup - 1):
            step.step(next(batches))
        steps, seconds, waited = timed(step, batches, arguments)
        if run.pretrain.batch_size == arguments.profile and isinstance(step, OurStep):
            print_profile(step, batches)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    flops = counter.get_total_flops() * steps / seconds
    return Row(run.pretrain.batch_size * steps / seconds, waited / seconds, memory, flops)


def timed(step: Any, batches: Iterator[Any], arguments: argparse.Namespace) -> tuple[int, float, float]:
    """Steps made, seconds they took, and seconds of these spent waiting for the loader."""
    synchronize()
    steps, waited, began = 0, 0.0, time.perf_counter()
    while steps < arguments.steps and time.perf_counter() - began < arguments.seconds:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        loss = step.step(batch)
        steps += 1
    synchronize()
    seconds = time.perf_counter() - began
    assert torch.isfinite(loss), "the step diverged: its time means nothing"
    return steps, seconds, waited


def print_profile(step: Any, batches: Iterator[Any], rows: int = 25) -> None:
    """Where the time of the next steps goes: on the device by kernel, on the host by operator."""
    with profile() as profiler:
        for _, batch in zip(range(PROFILED), batches, strict=False):
            step.step(batch)
        synchronize()
    averages = profiler.key_averages()
    for order in ("self_cuda_time_total", "self_cpu_time_total"):
        print(averages.table(sort_by=order, row_limit=rows, max_name_column_width=60))


def synchronize() -> None:
    """Wait for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bfloat16_rate(size: int = 8192, repeat: int = 20) -> float:
    """Floating-point operations a second of a bfloat16 matrix product; nan without a GPU."""
    if not torch.cuda.is_available():
        return float("nan")
    left, right = (torch.randn((size, size), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for attempt in range(repeat + 3):
        if attempt == 3:
            torch.cuda.synchronize()
            began = time.perf_counter()
        left @ right
    torch.cuda.synchronize()
    return 2 * size**3 * repeat / (time.perf_counter() - began)


def configured(name: str, batch_size: int, arguments: argparse.Namespace) -> RunConfig:
    """The shipped config of a detector with the benchmark's settings."""
    overrides: dict[str, Any] = {
        "batch_size": batch_size,
        "canvas_multiple": arguments.canvas,
        "channels_last": arguments.channels_last,
        "compile_backbone": arguments.compile,
    }
    if arguments.small:
        overrides["views"] = {"short_sides": (224, 256, 288, 320), "long_side": 448}
    return load_run_config(shipped_config(name), overrides, {"model.backbone.init_cfg": None})


def rows(name: str, arguments: argparse.Namespace) -> Iterator[tuple[str, int, Row | None]]:
    """(label, batch size, measurement); None when memory did not suffice."""
    device = get_device()
    if not arguments.no_reference:
        run = configured(name, 2, arguments)
        yield "reference", 2, measure(ReferenceStep(run, device), arguments.data, run, arguments)
    sizes = list(dict.fromkeys([2, *arguments.batch_size]))
    while sizes:
        size = sizes.pop(0)
        run = configured(name, size, arguments)
        try:
            row = measure(OurStep(run, device), arguments.data, run, arguments)
        except torch.OutOfMemoryError:
            row = None
        yield "ours", size, row
        if arguments.fill and row is not None and not sizes:
            sizes = [2 * size]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--detector", nargs="+", default=["fcos", "faster_rcnn"])
    parser.add_argument("--batch-size", type=int, nargs="*", default=[8])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end a row after this long")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--canvas", type=int, default=1, help="round batches up to multiples of it")
    for flag in ("--fill", "--channels-last", "--compile", "--no-reference"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument(
        "--profile", type=int, metavar="BATCH", help="print where the time goes at this batch size"
    )
    parser.add_argument("--small", action="store_true", help="short side 224-320: for a CPU")
    arguments = parser.parse_args()
    if arguments.warmup < 1:
        parser.error("--warmup 1 at least: in the first step floating-point operations are counted")
    if arguments.compile and arguments.canvas < 2:
        parser.error("--compile compiles once for every shape of a batch: give --canvas 128, too")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "mmdet"))
    rate = bfloat16_rate()
    print(f"{device}, {packages}, bfloat16 {rate / 1e12:.0f} TFLOP/s, {arguments.workers} workers\n")
    print("| detector | loop | images a step | images/s | ratio | data wait | peak | memory, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.detector:
        base = float("nan")
        for label, size, row in rows(name, arguments):
            if row is None:
                print(f"| {name} | {label} | {size} | out of memory | | | | |", flush=True)
                continue
            base = row.images_per_second if label == "reference" else base
            share = row.flops_per_second / rate
            print(
                f"| {name} | {label} | {size} | {row.images_per_second:.2f} | {row.images_per_second / base:.2f} | "
                f"{row.data_wait:.1%} | {share:.1%} | {row.peak_memory:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
