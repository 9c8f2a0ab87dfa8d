"""Seconds of a CPU's step of box-domain pretraining with and without freed memory kept (aligndet_train/allocator.py).

    python -m benchmarks.freed_memory --data OUT --detector retinanet_lite0 --batch-size 16

Two processes, one with and one without, make --steps steps in turn, on the same images; the seconds are the
processor's, which other work on the machine lengthens less than the clock's. The ratio is of the medians. The losses of
both are compared: they must be equal.
"""

import argparse
import resource
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

WARMUP = 2


class Taken(NamedTuple):
    """Of one step: processor's seconds, pages that the kernel had to find, the loss, largest size so far in GiB."""

    seconds: float
    faults: int
    loss: float
    size: float


def steps(pipe: Connection, arguments: argparse.Namespace, *, keep: bool) -> None:
    """In a process of its own: a step for every message, its figures as the answer."""
    import torch

    from aligndet_train import ops

    ops.install()
    from aligndet_train.allocator import keep_freed_memory
    from aligndet_train.box_domain import build_pretrainer
    from aligndet_train.config import load_run_config, shipped_config
    from aligndet_train.loader import build_loader
    from aligndet_train.optimizer import build_optimizer, wrapped_optimizer
    from proposals.dataset import open_dataset

    if keep and not keep_freed_memory():
        raise SystemExit("this machine has a GPU, or no glibc: there is nothing to compare")
    torch.set_num_threads(1)
    run = load_run_config(
        shipped_config(arguments.detector), {"batch_size": arguments.batch_size, "sampled_boxes": 2048}, {}
    )
    model = build_pretrainer(run.stock_model, run.pretrain)
    model.train()
    optimizer = wrapped_optimizer(build_optimizer(model, run.pretrain, world_size=1), amp=False)
    total = WARMUP + arguments.steps
    for batch in build_loader(open_dataset(arguments.data), run.pretrain, steps=total, workers=0):
        pipe.recv()
        began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        figures = model.train_step(batch, optimizer)
        seconds, usage = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(Taken(seconds, usage.ru_minflt - before, float(figures["loss"]), usage.ru_maxrss / 2**20))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a mined dataset")
    parser.add_argument("--detector", default="retinanet_lite0")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    context, pipes = get_context("spawn"), {}
    for keep in (False, True):
        pipes[keep], theirs = context.Pipe()
        context.Process(target=steps, args=(theirs, arguments), kwargs={"keep": keep}, daemon=True).start()
        # Ours alone would stay open if the process ended early.
        theirs.close()
    taken: dict[bool, list[Taken]] = {keep: [] for keep in pipes}
    for _ in range(WARMUP + arguments.steps):
        for keep, pipe in pipes.items():
            pipe.send(None)
            taken[keep].append(pipe.recv())
    if [one.loss for one in taken[True]] != [one.loss for one in taken[False]]:
        raise SystemExit("the losses differ: freed memory must not change what is computed")
    middle = {keep: median(one.seconds for one in each[WARMUP:]) for keep, each in taken.items()}
    for keep, each in taken.items():
        faults = median(one.faults for one in each[WARMUP:])
        print(
            f"{'kept' if keep else 'returned'}: {middle[keep]:.2f} s a step, {faults:,.0f} page faults, "
            f"at most {each[-1].size:.2f} GiB"
        )
    print(f"a step with memory returned takes {middle[False] / middle[True]:.2f} times as long")


if __name__ == "__main__":
    main()
