"""Our stream against other ways to feed a trainer the same images and boxes, on the CPU.

    python benchmarks/loader.py --data OUT [--workers 2] [--rounds 3] [--grow 1000 10000 100000]

OUT is a mined dataset. Readers: our stream in its exact order; webdataset's own pipeline on OUT's tars; `datasets`
streaming them; mmdet's CocoDataset on the same boxes as COCO json and the same images as files. Each hands a torch
DataLoader samples of a decoded uint8 image and its boxes, shuffled, in batches of 8. Each measurement is a process;
time to first batch begins after the imports and includes opening the data. Rounds alternate the readers; medians.

--grow: the resident memory of a process that opened a dataset of so many images and read 64 samples, without workers.
The dataset is OUT's shards again and again under new names (hard links); COCO json repeats its records likewise, with
20 boxes an image only, or it would outgrow the machine.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from proposals.dataset import layout, open_dataset
from proposals.dataset.manifest import write_model

BATCH = 8
JSON_BOXES = 20
READERS = ("ours", "webdataset", "datasets", "mmdet")
Sample = tuple[np.ndarray, np.ndarray]


def ours(data: Path, workers: int, samples: int) -> Iterator[Any]:
    """The stream that `aligndet pretrain` reads."""
    from aligndet_train.stream import ProposalStream, StepSampler, StreamState
    from aligndet_train.stream.packing import SampleLoader

    def start() -> Iterator[Any]:
        dataset = open_dataset(data)
        sampler = StepSampler(
            dataset.shard_sizes.tolist(), start=StreamState(0, 0, 0), batch_size=BATCH, steps=samples // BATCH
        )
        return iter(SampleLoader(ProposalStream(dataset), batch_sampler=sampler, num_workers=workers))

    yield
    yield from start()


def webdataset(data: Path, workers: int, samples: int) -> Iterator[Any]:
    """webdataset's pipeline, with its own decoder and a shuffle buffer of 1000."""
    import webdataset as wds

    yield
    pipeline = (
        wds.WebDataset(tars(data), shardshuffle=100, empty_check=False)
        .shuffle(1000, initial=100)
        .decode("rgb8")
        .map(lambda sample: (picture(sample), np.array(sample["json"]["boxes"], np.float32).reshape(-1, 4)))
        .batched(BATCH, collation_fn=list)
    )
    yield from wds.WebLoader(pipeline, batch_size=None, num_workers=workers)


def hugging_face(data: Path, workers: int, samples: int) -> Iterator[Any]:
    """`datasets` in streaming mode, with a shuffle buffer of 1000 not yet decoded samples."""
    import datasets
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    yield

    def decoded(batch: list[dict[str, Any]]) -> list[Sample]:
        return [(picture(row), np.array(row["json"]["boxes"], np.float32).reshape(-1, 4)) for row in batch]

    table = datasets.load_dataset("webdataset", data_files=tars(data), split="train", streaming=True)
    yield from DataLoader(
        table.shuffle(seed=0, buffer_size=1000), batch_size=BATCH, num_workers=workers, collate_fn=decoded
    )


def mmdet(data: Path, workers: int, samples: int) -> Iterator[Any]:
    """mmdet's CocoDataset on ``annotations.json`` and ``images`` beside ``data``, without resizing."""
    from aligndet_train import ops

    ops.install()
    from mmdet.datasets import CocoDataset
    from mmengine.registry import DefaultScope
    from torch.utils.data import DataLoader

    DefaultScope.get_instance("benchmark", scope_name="mmdet")
    yield
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDataset(
            ann_file=str(data.parent / "annotations.json"),
            data_prefix={"img": str(data.parent / "images")},
            metainfo={"classes": ("selective_search",)},
            pipeline=[
                {"type": "LoadImageFromFile"},
                {"type": "LoadAnnotations", "with_bbox": True},
                {"type": "PackDetInputs", "meta_keys": ()},
            ],
        )
    yield from DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=list)


STARTERS: dict[str, Callable[[Path, int, int], Iterator[Any]]] = {
    "ours": ours,
    "webdataset": webdataset,
    "datasets": hugging_face,
    "mmdet": mmdet,
}


def picture(sample: dict[str, Any]) -> np.ndarray:
    """The image of a sample, as an array."""
    return next(np.asarray(sample[name]) for name in ("jpg", "png", "bin") if name in sample)


def tars(data: Path) -> list[str]:
    """The dataset's tars."""
    return sorted(str(path) for path in (data / "shards").glob("*.tar"))


def measure(reader: str, data: Path, workers: int, samples: int) -> dict[str, float]:
    """In a fresh process: time to the first batch, samples a second after it, resident memory."""
    batches = STARTERS[reader](data, workers, samples)
    next(batches)  # imports
    before = resident()
    began = time.perf_counter()
    first = len(next(batches))
    first_at = time.perf_counter()
    rest = sum(len(batch) for batch in islice(batches, samples // BATCH - 1))
    ended = time.perf_counter()
    assert first == BATCH
    return {
        "first_batch": first_at - began,
        "rate": rest / (ended - first_at),
        "memory": (resident() - before) / 2**20,
    }


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_a_process(reader: str, data: Path, workers: int, samples: int) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--data", str(data), "--workers", str(workers)]
    done = subprocess.run(
        [*command, "--measure", reader, "--samples", str(samples)],
        check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def grown(data: Path, images: int, folder: Path) -> Path:
    """OUT's full shards, hard-linked under new names until there are ``images``; and the same as COCO json."""
    out = folder / f"{images}" / "dataset"
    (out / "shards").mkdir(parents=True)
    manifest = open_dataset(data).manifest
    shards, total = [], 0
    while total < images:
        shard = manifest.shards[len(shards) % len(manifest.shards)]
        name = layout.shard_name(len(shards))
        files = {}
        for kind in ("tar", "parquet"):
            entry = getattr(shard, kind)
            files[kind] = entry.model_copy(update={"path": f"shards/{name}.{kind}"})
            os.link(data / entry.path, out / files[kind].path)
        shards.append(shard.model_copy(update={"name": name, **files}))
        total += shard.images
    boxes = sum(shard.proposals for shard in shards)
    totals = manifest.totals.model_copy(update={"images": total, "proposals": boxes, "rejected": 0})
    source = manifest.source.model_copy(update={"images": total})
    update = {"shards": tuple(shards), "totals": totals, "source": source, "consolidated": ()}
    write_model(out / layout.MANIFEST, manifest.model_copy(update=update))
    write_coco(data, out.parent, repeat=total)
    return out


def write_coco(data: Path, folder: Path, repeat: int) -> None:
    """``annotations.json`` of ``repeat`` records, the dataset's own again and again, and its ``images``."""
    records = list(open_dataset(data))
    pictures = folder / "images"
    pictures.mkdir()
    for record in records:
        (pictures / f"{record.key}.jpg").write_bytes(record.image_bytes())
    most = JSON_BOXES if repeat > len(records) else None
    boxes = [
        [[left, top, right - left, bottom - top] for left, top, right, bottom in record.boxes[:most].tolist()]
        for record in records
    ]
    number = 0
    with (folder / "annotations.json").open("w") as file:
        file.write('{"categories":[{"id":1,"name":"selective_search"}],"images":[')
        for place in range(repeat):
            record = records[place % len(records)]
            image = {"id": place, "file_name": f"{record.key}.jpg"}
            size = {"width": record.width, "height": record.height}
            file.write(("," if place else "") + json.dumps({**image, **size}))
        file.write('],"annotations":[')
        for place in range(repeat):
            for box in boxes[place % len(records)]:
                line = {"id": number, "image_id": place, "category_id": 1, "iscrowd": 0, "bbox": box}
                file.write(("," if number else "") + json.dumps({**line, "area": box[2] * box[3]}))
                number += 1
        file.write("]}")


def speed_table(data: Path, workers: int, rounds: int) -> None:
    """Print time to first batch and samples a second of every reader."""
    samples = len(open_dataset(data)) // BATCH * BATCH
    results: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    with tempfile.TemporaryDirectory() as folder:
        linked = grown(data, samples, Path(folder))
        for _ in range(rounds):
            for reader in READERS:
                results[reader].append(in_a_process(reader, linked, workers, samples))
    print(f"\n{samples} images, {workers} workers, median of {rounds} rounds (range)")
    print("| reader | first batch, s | samples/s | ours / it |\n|---|---|---|---|")
    middle = {reader: statistics.median(r["rate"] for r in rows) for reader, rows in results.items()}
    for reader, rows in results.items():
        first = spread([row["first_batch"] for row in rows], 2)
        rate = spread([row["rate"] for row in rows], 0)
        print(f"| {reader} | {first} | {rate} | {middle['ours'] / middle[reader]:.2f} |")


def memory_table(data: Path, sizes: list[int]) -> None:
    """Print the memory every reader takes, at every size."""
    print("\nresident memory taken, MB, no workers, 64 samples read")
    print("| images | " + " | ".join(READERS) + " |\n|---" + "|---" * len(READERS) + "|")
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=data.parent) as folder:
            out = grown(data, size, Path(folder))
            cells = [f"{in_a_process(reader, out, 0, 64)['memory']:.0f}" for reader in READERS]
        print(f"| {size:,} | " + " | ".join(cells) + " |", flush=True)


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grow", type=int, nargs="*", default=[])
    parser.add_argument("--measure", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = measure(arguments.measure, arguments.data, arguments.workers, arguments.samples)
        print(json.dumps(found), flush=True)
        os._exit(0)  # the readers' own shutdown is not the subject
    packages = ("torch", "webdataset", "datasets", "mmdet", "opencv-contrib-python", "pillow")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    if arguments.rounds:
        speed_table(arguments.data, arguments.workers, arguments.rounds)
    if arguments.grow:
        memory_table(arguments.data, arguments.grow)


if __name__ == "__main__":
    main()
