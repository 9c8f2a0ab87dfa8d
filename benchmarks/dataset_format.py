"""Size and reading speed of the dataset format against the field's JSON, on one synthetic table.

    python benchmarks/dataset_format.py --images 100000

Makes (in a temporary folder, or the one named by ``--keep``) a dataset of about 100 boxes an image, its proposals.zarr,
and the same boxes as COCO json without our extra field. Every measurement is a process of its own, the median of five
(JSON: one). Times are processor time, files are warm in the page cache; time and memory count from after the imports.
The first record is one image's boxes as an array. A lookup is one image's boxes by random index, after the first
record; JSON gets an index by image id for that.
"""

import argparse
import contextlib
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from proposals.boxes import Boxes
from proposals.convert import DatasetSource
from proposals.convert.coco import write_coco
from proposals.dataset import layout, open_dataset
from proposals.dataset.assemble import PLAN_SCHEMA, assemble, plan_bytes
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import write_atomically
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import CommitRecord, SourceInfo, library_versions, write_model
from proposals.dataset.proposals_reader import ProposalReader
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.filter_spec import Filtered
from proposals.recipe import Recipe

WIDTH, HEIGHT, BOXES = 640, 480, 100
LOOKUPS = 2000
Lookup = Callable[[int], Boxes]


def synthetic_image(number: int) -> MinedImage:
    """Image ``number``: no pixels, 50 to 150 boxes on the grid of a search at 512 px."""
    rng = np.random.default_rng(number)
    count = int(rng.integers(BOXES // 2, BOXES * 3 // 2 + 1))
    low = rng.integers(0, 400, (count, 2)) * [1, 0.7]
    high = np.minimum(low + rng.integers(8, 256, (count, 2)), [512, 384])
    boxes = (np.concatenate([low, high], axis=1).round() * 1.25).astype(np.float32)
    rank = np.sort(rng.choice(1500, count, replace=False)).astype(np.float32)
    uri = f"{number:012d}.jpg"
    data = uri.encode()
    digest = hashlib.sha256(data).hexdigest()
    return MinedImage(layout.key_of(uri), uri, data, digest, WIDTH, HEIGHT, 1, Filtered(boxes, rank, "ok"))


def make_dataset(root: Path, images: int, per_shard: int) -> None:
    """A finished dataset of synthetic images in ``root``."""
    uris = [f"{number:012d}.jpg" for number in range(images)]
    shard = np.arange(images, dtype=np.int32) // per_shard
    columns = {"shard": shard, "key": [layout.key_of(uri) for uri in uris], "uri": uris}
    plan = pa.table({**columns, "size": np.full(images, 16, np.int64)}, schema=PLAN_SCHEMA)
    source = SourceInfo(kind="synthetic", images=images, fingerprint="0" * 64)
    identity = JobIdentity(
        recipe=Recipe(), source=source, images_per_shard=per_shard, versions=library_versions()
    )
    (root / layout.SHARDS).mkdir(parents=True)
    write_atomically(root / layout.PLAN, plan_bytes(plan, identity))
    records = []
    for number in range(int(shard[-1]) + 1):
        name = layout.shard_name(number)
        with ShardWriter(root, name) as writer:
            for place in np.flatnonzero(shard == number).tolist():
                writer.add(synthetic_image(place))
            entry = writer.commit()
        record = CommitRecord(
            job=identity.fingerprint(), shard=entry, rejected=(), timing={}, versions=identity.versions
        )
        write_model(layout.record_path(root, name), record)
        records.append(record)
    assemble(root, identity, records)


def make_json(root: Path, path: Path) -> None:
    """The boxes of dataset ``root`` as COCO json, as compact as the field writes it."""
    ranked = path.with_suffix(".ranked")
    write_coco(DatasetSource(open_dataset(root)), ranked)
    with ranked.open(encoding="utf-8") as source, path.open("w", encoding="utf-8") as target:
        target.writelines(re.sub(r',"rank":[^}]*', "", line) for line in source)
    ranked.unlink()


def open_json(path: Path) -> tuple[Lookup, Callable[[], Lookup]]:
    """json.load; the first record by a scan from the top, then an index of annotations by image."""
    with path.open(encoding="utf-8") as stream:
        content = json.load(stream)
    images, annotations = content["images"], content["annotations"]

    def xyxy(rows: list[list[float]]) -> Boxes:
        xywh = np.array(rows, dtype=np.float32).reshape(-1, 4)
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)

    def first(place: int) -> Boxes:
        rows = []
        for annotation in annotations:
            if annotation["image_id"] != images[place]["id"]:
                break
            rows.append(annotation["bbox"])
        return xyxy(rows)

    def index() -> Lookup:
        by_image = defaultdict(list)
        for annotation in annotations:
            by_image[annotation["image_id"]].append(annotation["bbox"])
        return lambda place: xyxy(by_image[images[place]["id"]])

    return first, index


def open_parquet(root: Path) -> tuple[Lookup, Callable[[], Lookup]]:
    """The dataset's own reader over the Parquet shards."""
    dataset = open_dataset(root)

    def look(place: int) -> Boxes:
        return dataset[place].boxes

    return look, lambda: look


def open_zarr(root: Path) -> tuple[Lookup, Callable[[], Lookup]]:
    """`ProposalReader` over proposals.zarr."""
    reader = ProposalReader(root, "zarr")

    def look(place: int) -> Boxes:
        return reader[place][0]

    return look, lambda: look


OPENERS = {"json": open_json, "parquet": open_parquet, "zarr": open_zarr}


def measure(form: str, path: Path, images: int) -> dict[str, float]:
    """Seconds to the first record and for the index, lookups a second, memory in MB; run in a fresh process."""
    # What the readers import when they first need it; pyarrow takes pandas where it is installed.
    with contextlib.suppress(ImportError):
        import pandas  # noqa: F401
    import zarr  # noqa: F401

    before = peak_kilobytes()
    start = time.process_time()
    first, index = OPENERS[form](path)
    assert np.array_equal(first(0), synthetic_image(0).proposals.boxes)
    opened = time.process_time() - start
    start = time.process_time()
    look = index()
    indexed = time.process_time() - start
    places = np.random.default_rng(0).integers(0, images, LOOKUPS).tolist()
    start = time.process_time()
    total = sum(len(look(place)) for place in places)
    lookups = LOOKUPS / (time.process_time() - start)
    assert total > LOOKUPS * BOXES // 2
    grown = (peak_kilobytes() - before) / 1024
    return {"first": opened, "index": indexed, "lookups": lookups, "megabytes": grown}


def peak_kilobytes() -> int:
    """The largest resident size of this program so far (ru_maxrss would count its parent's)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def on_disk(form: str, root: Path, path: Path) -> int:
    """Bytes of a form's files."""
    if form == "json":
        return path.stat().st_size
    files = root.glob("shards/*.parquet") if form == "parquet" else root.glob(f"{layout.CONSOLIDATED}/**/*")
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    """Make the forms, measure each in a process of its own, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--images-per-shard", type=int, default=64)
    parser.add_argument("--keep", type=Path, help="make the data here, or reuse what is there")
    parser.add_argument("--measure", choices=OPENERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        root, path = folder / "dataset", folder / "proposals.json"
        if options.measure:
            target = path if options.measure == "json" else root
            print(json.dumps(measure(options.measure, target, options.images)))
            return
        if not path.is_file():
            make_dataset(root, options.images, options.images_per_shard)
            consolidate(root)
            make_json(root, path)
        report(folder, root, path, options.images)


def report(folder: Path, root: Path, path: Path, images: int) -> None:
    """Print the table."""
    boxes = open_dataset(root).manifest.totals.proposals
    print(f"{images:,} images, {boxes:,} boxes\n")
    print(
        "| form | bytes/box | first record | index | memory | random lookups/s |\n|---|---|---|---|---|---|"
    )
    for form in OPENERS:
        command = [
            sys.executable,
            __file__,
            "--measure",
            form,
            "--images",
            str(images),
            "--keep",
            str(folder),
        ]
        runs = [_run(command) for _ in range(1 if form == "json" else 5)]
        found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(
            f"| {form} | {on_disk(form, root, path) / boxes:.1f} | {found['first']:.3f} s | {found['index']:.1f} s "
            f"| {found['megabytes']:,.0f} MB | {found['lookups']:,.0f} |",
            flush=True,
        )


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
