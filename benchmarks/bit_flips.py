"""Does `aligndet verify --deep` find any single flipped bit? Flips random bits in a copy, every kind of file in turn.

python benchmarks/bit_flips.py DATASET [--flips 50] [--seed 0]: exit status 0 when all were found and named.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from proposals.dataset.verify import verify_dataset
from proposals.errors import NewerFormatError


def kind_of(path: Path, root: Path) -> str:
    """The kind of a dataset's file, such as ``shards/*.tar``, ``plan.parquet`` or ``proposals.zarr``."""
    parts = path.relative_to(root).parts
    if len(parts) == 1:
        return parts[0]
    return parts[0] if parts[0].endswith(".zarr") else f"{parts[0]}/*{path.suffix}"


def flip(path: Path, bit: int) -> None:
    """Invert one bit of a file, in place."""
    with path.open("r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def run(root: Path, flips: int, seed: int) -> int:
    """Flip ``flips`` bits of the dataset in ``root``, one at a time and back again; how many were found."""
    draw = random.Random(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    kinds = sorted({kind_of(path, root) for path in files})
    found = 0
    for number in range(flips):
        kind = kinds[number % len(kinds)]
        path = draw.choice([path for path in files if kind_of(path, root) == kind])
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        name = path.relative_to(root).as_posix()
        named = problem_with(root, name)
        flip(path, bit)
        found += bool(named)
        print(f"{number + 1:3} {name}, bit {bit}: {named or 'NOT FOUND'}")
    return found


def problem_with(root: Path, name: str) -> str:
    """What `verify --deep` says of the file ``name``, empty for nothing."""
    try:
        problems = verify_dataset(root, deep=True).problems
    except NewerFormatError as error:  # the flipped bit was in the format version
        return str(error)
    return next((problem.what for problem in problems if problem.file == name), "")


def main() -> int:
    """Copy, flip, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(options.dataset, Path(folder) / "copy"))
        before = len(verify_dataset(root, deep=True).problems)
        found = run(root, options.flips, options.seed)
        after = len(verify_dataset(root, deep=True).problems)
    print(f"{found} of {options.flips} flips found; the clean copy: {before} problems before, {after} after")
    return 0 if (found, before, after) == (options.flips, 0, 0) else 1


if __name__ == "__main__":
    sys.exit(main())
