"""The box-domain contrastive loss, forward and backward: a loop over ids as in the release, ours, ours compiled.

    python benchmarks/contrastive.py            # on a GPU: the table of docs/performance.md
    python benchmarks/contrastive.py --small   # sizes for a CPU

256-d float32 embeddings; a third of the boxes of each view belong to a proposal, the others are background. Before
timing, losses and gradients are compared, which is also when compiling happens: anew for every row, as in a run that
has these sizes. Time: median of the repetitions; memory: the peak above the inputs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from aligndet_train.losses.contrastive import box_contrastive_loss

SIZES = [(2048, 64), (2048, 200), (4096, 200), (8192, 400)]
SMALL_SIZES = [(256, 16), (512, 32)]
BACKGROUND = -1
TEMPERATURE = 0.5
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def loop_over_ids(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """What the release does: for each id, the logits of every (query, positive) pair against all negatives."""
    query, key = normalize(query, dim=1), normalize(key.detach(), dim=1)
    losses = []
    for i in query_ids.unique().tolist():
        if i == BACKGROUND:
            continue
        queries = query[query_ids == i]
        positives = key[key_ids == i]
        positives = positives if len(positives) else queries
        negatives = torch.cat([key[key_ids != i], query[query_ids != i].detach()])
        pairs = (queries @ positives.T).reshape(-1, 1)
        against = (queries @ negatives.T).repeat_interleave(len(positives), dim=0)
        logits = torch.cat([pairs, against], dim=1) / TEMPERATURE
        losses.append(cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long)))
    return torch.stack(losses).mean()


def ours(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor, *, compiled: bool = False) -> Tensor:
    """The loss that training uses."""
    return box_contrastive_loss(
        query, key, query_ids, key_ids, background=BACKGROUND, temperature=TEMPERATURE, compiled=compiled
    )


ours_compiled: Loss = partial(ours, compiled=True)


def inputs(boxes: int, ids: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings and ids of two views."""
    generator = torch.Generator().manual_seed(boxes + ids)
    embeddings = [torch.randn((boxes, 256), generator=generator).to(device) for _ in range(2)]
    labels = []
    for _ in range(2):
        drawn = torch.randint(0, ids, (boxes,), generator=generator)
        drawn[torch.rand(boxes, generator=generator) > 1 / 3] = BACKGROUND
        labels.append(drawn.to(device))
    return embeddings[0].requires_grad_(), embeddings[1], labels[0], labels[1]


def measure(loss: Loss, data: tuple[Tensor, Tensor, Tensor, Tensor], repeat: int) -> tuple[float, float]:
    """Median milliseconds of forward and backward, and GiB at the peak (0 on a CPU)."""
    gpu = data[0].is_cuda
    times = []
    for attempt in range(repeat + 3):
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        began = time.perf_counter()
        torch.autograd.grad(loss(*data), data[0])
        if gpu:
            torch.cuda.synchronize()
        if attempt >= 3:
            times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() - before if gpu else 0
    return 1000 * statistics.median(times), peak / 2**30


def check(expected: Loss, found: Loss, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Both are one loss, with one gradient."""
    values = [loss(*data) for loss in (expected, found)]
    gradients = [torch.autograd.grad(value, data[0])[0] for value in values]
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def row(boxes: int, ids: int, device: str, repeat: int) -> str:
    """One line of the table."""
    data = inputs(boxes, ids, device)
    try:
        check(loop_over_ids, ours, data)
        slow, slow_memory = measure(loop_over_ids, data, max(3, repeat // 10))
        reference = f"{slow:.1f} | {slow_memory:.2f}"
    except torch.OutOfMemoryError:
        slow, reference = float("nan"), "out of memory | -"
    torch.cuda.empty_cache()
    torch.compiler.reset()
    check(ours, ours_compiled, data)
    fast, memory = measure(ours, data, repeat)
    fastest, least = measure(ours_compiled, data, repeat)
    figures = (
        f"{fast:.2f} | {memory:.2f} | {slow / fast:.0f} | {fastest:.2f} | {least:.2f} | {slow / fastest:.0f}"
    )
    return f"| {boxes} | {ids} | {reference} | {figures} |"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeat", type=int, default=50)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}\n")
    columns = (
        "boxes per view | ids | loop over ids, ms | GiB | ours, ms | GiB | ratio | compiled, ms | GiB | ratio"
    )
    print(f"| {columns} |\n|{'---|' * 10}")
    for boxes, ids in SMALL_SIZES if arguments.small else SIZES:
        print(row(boxes, ids, device, arguments.repeat), flush=True)


if __name__ == "__main__":
    main()
