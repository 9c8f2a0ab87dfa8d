"""The fast engine against OpenCV: alternating, in one process, on one core; and how two processes share two cores.

    python benchmarks/selective_search.py                      # fast and quality at 500x375 and 640x480
    python benchmarks/selective_search.py --modes fast --rounds 7
    python benchmarks/selective_search.py --scaling            # images per second of one and of two processes
    python benchmarks/selective_search.py --memory             # bytes per pixel of the workspace
    python benchmarks/selective_search.py --first-call         # a new process with a warm cache

Each round times OpenCV once and then ours on every photograph, so that whatever else the machine does falls on both. A
photograph's ratio is that of the two medians. Times are the thread's processor time (`--wall` for the clock's): a busy
neighbour then costs cache misses but no waiting.
"""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data
import sklearn.datasets

from proposals.opencv import build_identity
from proposals.selective_search import Mode, propose

Image = npt.NDArray[np.uint8]
SIZES = ((500, 375), (640, 480))
FIRST_CALL = """
import time, numpy, cv2
image = numpy.random.default_rng(0).integers(0, 256, (375, 500, 3), numpy.uint8)
start = time.perf_counter()
from proposals.selective_search import propose
propose(image)
print(time.perf_counter() - start)
"""


def photographs() -> dict[str, Image]:
    """Eight photographs that ship with scikit-image and scikit-learn, BGR."""
    left, right, _ = skimage.data.stereo_motorcycle()
    rgb = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}
    rgb |= {name: sklearn.datasets.load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    rgb |= {"motorcycle left": left, "motorcycle right": right}
    return {name: np.ascontiguousarray(image[:, :, 2::-1]) for name, image in rgb.items()}


def resized(image: Image, size: tuple[int, int]) -> Image:
    """The photograph at this (width, height), stretched where its shape differs."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def compare(mode: Mode, size: tuple[int, int], rounds: int, clock: Callable[[], float]) -> None:
    """Print one line per photograph and the table's row."""
    seconds: dict[tuple[str, str], list[float]] = {}
    images = {name: resized(image, size) for name, image in photographs().items()}
    counts = {name: len(propose(image, mode)) for name, image in images.items()}
    for turn in range(rounds):
        for name, image in images.items():
            found = []
            for engine in ("opencv", "fast"):
                start = clock()
                found.append(propose(image, mode, turn, engine=engine).boxes)  # type: ignore[arg-type]
                seconds.setdefault((name, engine), []).append(clock() - start)
            assert np.array_equal(*found), f"{name}: the engines disagree"
    theirs = {name: statistics.median(seconds[name, "opencv"]) for name in images}
    ours = {name: statistics.median(seconds[name, "fast"]) for name in images}
    ratios = {name: theirs[name] / ours[name] for name in images}
    for name in images:
        print(
            f"    {name:16} {theirs[name]:6.3f} s {ours[name]:7.4f} s {ratios[name]:5.1f}x {counts[name]:6} boxes"
        )
    print(
        f"{size[0]}x{size[1]} {mode:7} cv2 {statistics.median(theirs.values()):.3f} s, "
        f"ours {statistics.median(ours.values()):.4f} s, ratio {statistics.median(ratios.values()):.1f} "
        f"({min(ratios.values()):.1f}-{max(ratios.values()):.1f}), "
        f"boxes {min(counts.values())}-{max(counts.values())}",
        flush=True,
    )


def _mine(seconds: float, ready: Any, done: Any) -> None:
    cv2.setNumThreads(1)
    images = [resized(image, SIZES[0]) for image in photographs().values()]
    for image in images:
        propose(image)
    ready.wait()
    start, processor, count = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() - start < seconds:
        propose(images[count % len(images)])
        count += 1
    done.put((count / (time.perf_counter() - start), count / (time.thread_time() - processor)))


def throughput(processes: int, seconds: float) -> tuple[float, float]:
    """Images a second of so many processes together, fast mode at 500x375: by the clock and by processor time."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=_mine, args=(seconds, ready, done)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rates = [done.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(clock for clock, _ in rates), sum(processor for _, processor in rates)


def scaling(rounds: int, seconds: float) -> None:
    """Print how much two processes give of one, alternating. Processor time leaves out waiting for busy neighbours."""
    ratios = []
    for _ in range(rounds):
        one, two = throughput(1, seconds), throughput(2, seconds)
        ratios.append((two[0] / one[0], two[1] / one[1]))
        print(
            f"    images/s by the clock {one[0]:.1f} and {two[0]:.1f}, by processor {one[1]:.1f} and {two[1]:.1f}"
        )
    for name, values in zip(("clock", "processor"), zip(*ratios, strict=True), strict=True):
        spread = f"{min(values):.2f}-{max(values):.2f}"
        print(
            f"two processes give {statistics.median(values):.2f}x of one by the {name} ({spread})", flush=True
        )


def memory() -> None:
    """Print the workspace's bytes per pixel for a photograph and for noise."""
    from proposals.selective_search import workspace

    noise = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)
    for name, image in (("photograph", resized(photographs()["china"], (2048, 2048))), ("noise", noise)):
        for mode in ("fast", "quality"):
            workspace.release()
            propose(image, mode)  # type: ignore[arg-type]
            print(
                f"{name}, {mode}: {workspace.current().nbytes / image[..., 0].size:.0f} bytes per pixel",
                flush=True,
            )


def first_call(rounds: int) -> None:
    """Print how long a new process waits for its first result when the kernels are compiled."""
    propose(np.zeros((32, 32, 3), np.uint8))
    waits = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True)
        waits.append(float(done.stdout))
    print(
        f"first call of a new process: {statistics.median(waits):.2f} s ({min(waits):.2f}-{max(waits):.2f})"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--modes", nargs="+", default=["fast", "quality"], choices=["single", "fast", "quality"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wall", action="store_true", help="time by the clock, not the processor")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--first-call", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each throughput measurement")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"cv2 {build_identity()}, one core, {'wall' if options.wall else 'processor'} time")
    if options.scaling:
        scaling(options.rounds, options.seconds)
    if options.memory:
        memory()
    if options.first_call:
        first_call(options.rounds)
    if options.scaling or options.memory or options.first_call:
        return
    for size in SIZES:
        for mode in options.modes:
            compare(mode, size, options.rounds, time.perf_counter if options.wall else time.thread_time)


if __name__ == "__main__":
    main()
