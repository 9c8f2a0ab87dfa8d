"""What the job costs beside the search, and how far one driver reaches.

    python benchmarks/mining_scaling.py throughput --images FOLDER   # the pipeline against the bare kernel loop
    python benchmarks/mining_scaling.py scheduler --dataset OUT      # ten thousand workers in virtual time
    python benchmarks/mining_scaling.py ray                          # empty tasks through the real Ray
    python benchmarks/mining_scaling.py scan                         # resume scan and status of a million images
    python benchmarks/mining_scaling.py cost --seconds 0.084         # core-hours of public collections

`throughput` alternates the kernel loop (decode, resize, search, filter: one process, the images in memory) with the
pipeline at one and two workers, on the same images, and counts the pipeline's images from its first to its last tenth:
starting Ray is no part of it. Take so many photographs that every worker gets the same number of whole shards, or the
last ones wait for a single worker. Besides the clock's figure there is one computed from the processor time of all
processes, which are listed by what they do: all that is left to say on a machine that others use too.
"""

import argparse
import hashlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mining_processes import Processes, table
from simulated_executor import SimulatedExecutor

from pipeline.begin import begin
from pipeline.cluster import connected
from pipeline.driver import Where
from pipeline.executor import Attempt, End
from pipeline.image_records import Kernel, Stopwatch
from pipeline.image_task import mine_image
from pipeline.job import JobOptions, run_job
from pipeline.plan import ShardTask, make_plan
from pipeline.ray_executor import RayExecutor
from pipeline.scheduler import Callbacks, Scheduler
from pipeline.shard_task import Count, Work
from pipeline.sources import FolderSource, SourceEntry
from pipeline.status import StatusReader
from proposals.dataset import layout
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    CommitRecord,
    FileEntry,
    ShardEntry,
    library_versions,
    read_record,
)
from proposals.dataset.seal import seal
from proposals.recipe import Recipe

COLLECTIONS = {"COCO": 118_287, "ImageNet-1k": 1_281_167, "Open Images": 9_178_275, "LAION-400M": 413_000_000}
WORKERS = 10_000
_FIGURES = ("images/s", "per processor second", "computed for idle cores")
_RATIOS = ("as many kernel loops at once", "pipeline by the clock", "pipeline computed for idle cores")


class Marks:
    """Watches a job: the clock, the images done and the processor time by role, at its first and at its last tenth."""

    def __init__(self) -> None:
        self._processes = Processes()
        self._images = 0
        self.seen: list[tuple[float, int, dict[str, float]]] = []

    def start(self, images: int, resumed: Count) -> None:
        """See pipeline.driver.Observer."""
        self._images = images

    def say(self, sentence: str) -> None:
        """See pipeline.driver.Observer."""
        print(sentence)

    def update(self, count: Count) -> None:
        """See pipeline.driver.Observer."""
        done = count.images + count.rejected
        if len(self.seen) < 2 and done >= (0.1, 0.9)[len(self.seen)] * self._images:
            self.seen.append((time.perf_counter(), done, self._processes.seconds()))

    def rates(self, cores: int) -> tuple[float, float, float]:
        """Images per second between both: of the clock, of processor time, and of idle ``cores``.

        The last takes what Ray and the driver need by the second off the cores, and divides the rest by what search
        and worker need by the image.
        """
        (start, first, before), (end, last, after) = self.seen
        images, clock = last - first, end - start
        spent = {role: seconds - before[role] for role, seconds in after.items()}
        print(table(spent, images, clock))
        by_image = spent["search"] + spent["worker"]
        beside = (sum(spent.values()) - by_image) / clock
        return images / clock, images / sum(spent.values()), (cores - beside) * images / by_image


def throughput(folder: Path, rounds: int, shard: int, workers: list[int]) -> None:
    """Alternate the kernel loop and the pipeline; print a line each, and each round's and all rounds' ratios."""
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in workers}
    before = said("kernel", kernel_loops(folder, 1))
    for _ in range(rounds):
        runs = {}
        for count in workers:
            together = said(f"{count} kernels", kernel_loops(folder, count)) if count > 1 else before
            runs[count] = together[0], *said(f"{count} workers", pipeline(folder, count, shard))
        after = said("kernel", kernel_loops(folder, 1))
        # A shared machine gets slower and faster by the minute: a round stands between two loops of its own.
        clock, processor = ((one + other) / 2 for one, other in zip(before, after, strict=True))
        before = after
        for count, (together, images, _, computed) in runs.items():
            found[count].append(
                (together / clock / count, images / clock / count, computed / processor / count)
            )
    for count, ratios in found.items():
        for name, each in zip(_RATIOS, zip(*ratios, strict=True), strict=True):
            rows = ", ".join(f"{ratio:.3f}" for ratio in each)
            print(f"{count} x kernel, {name}: {statistics.median(each):.3f} ({rows})")


def said(name: str, rates: tuple[float, ...]) -> tuple[float, ...]:
    """``rates``, which are printed."""
    words = zip(_FIGURES, rates, strict=False)
    print(f"{name:10}", ", ".join(f"{rate:7.2f} {word}" for word, rate in words), flush=True)
    return rates


def kernel_loops(folder: Path, count: int) -> tuple[float, float]:
    """Images per second of the clock, of all, and of processor time; ``count`` fresh processes at once."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import mining_scaling as m; m.print_kernel_loop(sys.argv[2])"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    found = [[float(rate) for rate in process.communicate()[0].split()] for process in running]
    return sum(clock for clock, _ in found), statistics.mean(processor for _, processor in found)


def print_kernel_loop(folder: str) -> None:
    """The bare loop over all images of ``folder``, in memory."""
    import cv2

    cv2.setNumThreads(1)
    source = FolderSource(Path(folder))
    images = [source.read(entry.uri) for entry in source.entries()]
    prints = [hashlib.sha256(data).hexdigest() for data in images]
    kernel = Kernel(Recipe())
    for data, sha in zip(images[:3], prints, strict=False):
        mine_image(data, sha, kernel, Stopwatch())
    clock, processor = time.perf_counter(), time.process_time()
    for data, sha in zip(images, prints, strict=True):
        mine_image(data, sha, kernel, Stopwatch())
    print(len(images) / (time.perf_counter() - clock), len(images) / (time.process_time() - processor))


def pipeline(folder: Path, workers: int, shard: int) -> tuple[float, float, float]:
    """The same of `aligndet mine`, and the rate computed for ``workers`` cores that do nothing else."""
    marks = Marks()
    with tempfile.TemporaryDirectory() as scratch:
        options = JobOptions(images_per_shard=shard, workers=workers)
        run_job(FolderSource(folder.resolve()), Path(scratch) / "out", Recipe(), options, marks)
    return marks.rates(workers)


def scheduler(dataset: Path, images: int, shard: int) -> None:
    """One plan of ``images``, mined by ten thousand workers in virtual time, in this process."""
    times = _measured_times(dataset)
    draw, versions = random.Random(0), library_versions()

    def behaviour(attempt: Attempt) -> tuple[float, End]:
        seconds = sum(draw.choices(times, k=8)) / 8 * len(attempt.task)
        return seconds, End(attempt.number, record=_record(attempt.task, versions))

    counts, kept = Count(), []

    def record(task: ShardTask, done: CommitRecord) -> None:
        nonlocal counts
        counts += Count(images=len(task))
        kept.append(done)  # as the driver does, until it commits

    executor = SimulatedExecutor(WORKERS, behaviour)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    loop = Scheduler(executor, Callbacks(record))
    loop.run(_tasks(images, shard))
    spent = time.process_time() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert counts.images == images
    assert not loop.failures
    shards = -(-images // shard)
    print(
        f"{images:>11,} images, {shards:>9,} shards of {shard}: {spent:7.1f} s of driver, "
        f"{shards / spent:8,.0f} tasks/s, {memory:6.0f} MB more, {executor.most_in_flight:,} in flight, "
        f"{executor.now() / 3600:.2f} h on the cluster",
        flush=True,
    )


def _tasks(images: int, shard: int) -> Iterator[ShardTask]:
    for number, first in enumerate(range(0, images, shard)):
        uris = tuple(
            f"train/{place // 1000:06d}/{place:012d}.jpg"
            for place in range(first, min(first + shard, images))
        )
        keys = tuple(f"{uri[-16:-4]}-0123456789abcdef" for uri in uris)
        yield ShardTask(f"{number:05d}", keys, uris)


def _measured_times(dataset: Path) -> list[float]:
    records = [read_record(path) for path in sorted((dataset / layout.SHARDS).glob("*.json"))]
    times = [
        record.timing["total"] / max(1, record.shard.images + len(record.rejected)) for record in records
    ]
    print(
        f"{len(times)} measured shards: {statistics.mean(times):.3f} s/image, {min(times):.3f} to {max(times):.3f}"
    )
    return times


def _record(task: ShardTask, versions: dict[str, str], job: str = "") -> CommitRecord:
    files = [
        FileEntry(path=f"{layout.SHARDS}/{task.name}.{kind}", bytes=size, sha256="0" * 64)
        for kind, size in (("tar", 200_000 * len(task)), ("parquet", 3000 * len(task)))
    ]
    counts = {"images": len(task), "proposals": 330 * len(task), "statuses": {"ok": len(task)}}
    shard = ShardEntry(name=task.name, tar=files[0], parquet=files[1], **counts)  # type: ignore[arg-type]
    timing = {
        stage: 0.1 * len(task)
        for stage in ("read", "decode", "resize", "propose", "filter", "write", "total")
    }
    return CommitRecord(job=job, shard=shard, rejected=(), timing=timing, versions=versions)


def ray_tasks(count: int) -> None:
    """Empty tasks through the real executor and the real Ray, on this machine."""
    work = Work(FolderSource(Path()), Path(), Recipe(), "")
    where = Where(None, 2)
    with connected(where.address, where.workers):
        executor = RayExecutor(work, where.workers, local=True)
        waiting, ended, start = 0, 0, 0.0
        for number in range(count + 100):
            if number == 100:
                start = time.perf_counter()
            executor.start(Attempt(number, ShardTask("00000", (), ()), probe=True))
            waiting += 1
            while waiting > 64:
                done = executor.wait(1.0)
                waiting, ended = waiting - len(done), ended + len(done)
        while waiting:
            waiting -= len(executor.wait(1.0))
        print(f"{count} empty tasks through Ray: {count / (time.perf_counter() - start):,.0f} tasks/s")


def scan(images: int, shard: int) -> None:
    """How long a resume and `aligndet status` take to read the records of a job that is almost done."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        plan = make_plan(
            (SourceEntry(f"train/{n // 1000:06d}/{n:012d}.jpg", 200_000) for n in range(images)), shard
        )
        identity = JobIdentity(
            recipe=Recipe(),
            source=plan.source("folder"),
            images_per_shard=shard,
            versions=library_versions(),
        )
        workspace = begin(out, plan, identity)
        for task in list(workspace.pending)[:-1]:
            record = _record(task, identity.versions, identity.fingerprint())
            for file in record.shard.files:
                with (out / file.path).open("wb") as stream:
                    stream.truncate(file.bytes)
            text = record.model_dump_json(indent=1).encode() + b"\n"
            layout.record_path(out, task.name).write_bytes(seal(text))
        timed("resume scan", lambda: begin(out, plan, identity))
        timed("status", lambda: StatusReader(out).read())


def timed(name: str, run: object) -> None:
    """Print how long ``run()`` takes."""
    clock, processor = time.perf_counter(), time.process_time()
    run()  # type: ignore[operator]
    print(
        f"{name}: {time.perf_counter() - clock:.1f} s, {time.process_time() - processor:.1f} s of processor time"
    )


def cost(seconds: float, overhead: float) -> None:
    """Core-hours of public collections at ``seconds`` an image."""
    print(f"{seconds} s/image of search and {overhead:.0%} beside it")
    for name, images in COLLECTIONS.items():
        hours = images * seconds * (1 + overhead) / 3600
        wall = f"{hours / WORKERS * 60:8.1f} min on 10,000 cores"
        print(f"{name:12} {images:>12,} images {hours:>10,.0f} core-hours, {wall}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["throughput", "scheduler", "ray", "scan", "cost"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=0.084)
    parser.add_argument("--overhead", type=float, default=0.05)
    given = parser.parse_args()
    if given.what == "throughput":
        throughput(given.images, given.rounds, given.shard, given.workers)
    elif given.what == "scheduler":
        scheduler(given.dataset, given.count, given.shard)
    elif given.what == "ray":
        ray_tasks(2000)
    elif given.what == "scan":
        scan(given.count, given.shard)
    else:
        cost(given.seconds, given.overhead)


if __name__ == "__main__":
    main()
