"""How fast the driver lists, plans and walks through a source, and how much memory that takes.

    python benchmarks/source_listing.py --entries 1000000 --entries 10000000

The source is synthetic: names and sizes come from a counter, so that what is measured is the driver and not a disk.
Each size runs in a process of its own, whose peak memory is printed.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.begin import begin
from pipeline.plan import PlanFile, make_plan
from pipeline.source_change import compare
from pipeline.sources import SourceEntry
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import library_versions
from proposals.recipe import Recipe

PER_SHARD = 1000


def names(count: int) -> Iterator[SourceEntry]:
    """Entries such as photos/0000123/000000123456.jpg."""
    for number in range(count):
        yield SourceEntry(f"photos/{number // 1000:07d}/{number:012d}.jpg", 100_000 + number % 7919)


def timed(what: str, count: int, action: Callable[[], object]) -> object:
    """Run ``action`` and print its rate and the peak memory so far."""
    start = time.perf_counter()
    result = action()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count:>11,} {what:<28} {seconds:8.1f} s {count / seconds:>12,.0f} entries/s   peak {peak:6.0f} MB",
        flush=True,
    )
    return result


def measure(count: int) -> None:
    """List and plan ``count`` entries, start a job in a folder, read every task, compare list and plan."""
    timed("the names alone", count, lambda: sum(1 for _ in names(count)))
    plan = timed("listed and planned", count, lambda: make_plan(names(count), PER_SHARD))
    identity = JobIdentity(
        recipe=Recipe(), source=plan.source("folder"), images_per_shard=PER_SHARD, versions=library_versions()
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        workspace = timed("plan.parquet written", count, lambda: begin(out, plan, identity))
        size = (out / "plan.parquet").stat().st_size / 2**20
        images = timed("every task read", count, lambda: sum(len(task) for task in workspace.pending))
        timed("resumed, nothing done yet", count, lambda: begin(out, plan, identity))
        written = PlanFile(out / "plan.parquet")
        change = timed("compared with what was", count, lambda: compare(written, plan))
    assert images == count
    assert not change.refusals()
    print(f"{count:>11,} plan.parquet has {size:.0f} MB, {size * 2**20 / count:.0f} bytes an entry")


def main() -> None:
    """Measure each size in a fresh process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--entries", type=int, action="append", help="How many; give it again for more sizes."
    )
    for count in parser.parse_args().entries or [1_000_000, 10_000_000]:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(count,))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
