"""What is fuzzed: a reader, the one file of its input that is mutated, and sound files to start from."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from proposals.dataset import layout
from tests.attacks import images
from tests.attacks.tars import END, member, pax

Seeds = Callable[[Path], list[bytes]]


@dataclass(frozen=True)
class Target:
    """reader: see `readers`. place: the file that is mutated. read: what the reader gets. Both below a scratch folder.

    seeds: of that folder, made after `prepare`. modules: whose coverage atheris follows.
    """

    reader: str
    place: str
    read: str
    seeds: Seeds
    modules: tuple[str, ...]
    dataset: bool = False


def prepare(target: Target, folder: Path) -> None:
    """Make in ``folder`` what the target's file lies in."""
    if target.dataset:
        _mine(folder)
    (folder / target.place).parent.mkdir(parents=True, exist_ok=True)


def _mine(folder: Path) -> None:
    import pipeline.image_task  # noqa: F401 - the job's modules, before anything is limited
    from pipeline.begin import begin
    from pipeline.commit import commit
    from pipeline.plan import make_plan
    from pipeline.shard_task import Work, mine_shard
    from pipeline.sources import FolderSource, describe
    from proposals.dataset.consolidated import consolidate
    from proposals.dataset.identity import JobIdentity
    from proposals.dataset.manifest import library_versions, read_manifest
    from proposals.dataset.regions import RegionStore
    from proposals.recipe import Recipe

    (folder / "in").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "in" / f"{number}.png"), cv2.resize(noise, (80, 60)))
    source, out = FolderSource(folder / "in"), folder / "dataset"
    entries = list(source.entries())
    identity = JobIdentity(
        recipe=Recipe(), source=describe("folder", entries), images_per_shard=2, versions=library_versions()
    )
    workspace = begin(out, make_plan(entries, 2), identity)
    work = Work(source, out, Recipe(), identity.fingerprint())
    commit(workspace, {task.name: mine_shard(task, work) for task in workspace.pending})
    consolidate(out)
    store = RegionStore(out)
    store.begin({"of": "fuzz"})
    for shard in read_manifest(out).shards:
        store.write(shard, np.ones((shard.proposals, 4), np.float16))
    shutil.rmtree(folder / "in")


def _there(place: str) -> Seeds:
    return lambda folder: [(folder / place).read_bytes()]


def _unsealed(place: str) -> Seeds:
    """JSON without its seal, which no mutation would keep whole: what a reader must take from older versions."""

    def seeds(folder: Path) -> list[bytes]:
        content = json.loads((folder / place).read_text())
        content.pop("digest", None)
        return [json.dumps(content, indent=1).encode()]

    return seeds


def _images(folder: Path) -> list[bytes]:
    plain = [images.encoded(kind=kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]
    return [
        *plain,
        images.scans(3),
        *(images.SHOWN[name][0]() for name in ("tiff_that_is_its_own_next", "animated_png")),
    ]


def _tars(folder: Path) -> list[bytes]:
    two = member("a.jpg", b"x" * 600) + member("a.json", b"{}")
    return [
        two + END,
        pax(b"path=b.jpg", b"size=3") + member("c.jpg") + END,
        member("l", b"d.jpg\0", b"L") + two + END,
    ]


def _parquet(folder: Path) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": b"abc", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}], kind)
    tables = [pa.table({"image": cells}), pa.table({"image": pa.array([b"abc", b"d"])})]
    written = []
    for table in tables:
        pq.write_table(table, stream := io.BytesIO())
        written.append(stream.getvalue())
    return written


_COCO = (
    '{"images":[{"id":1,"file_name":"a.jpg","width":9,"height":9},{"id":2,"file_name":"b.jpg"}],"categories":'
    '[{"id":1,"name":"cluster_1"}],"annotations":[{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4.5],"rank":1}]}'
)


def _pickles(folder: Path) -> list[bytes]:
    boxes, scores = np.ones((2, 4), np.float32), np.ones(2)
    both = (
        {"boxes": [boxes], "ids": [1], "objectness_logits": [scores]},
        {"a/b.jpg": {"bboxes": boxes, "scores": scores}},
    )
    return [pickle.dumps(content, protocol) for content in both for protocol in (2, 4)]


def _checkpoints(folder: Path) -> list[bytes]:
    import torch

    content = {
        "format": 1, "step": 1, "stream": [0, 0, 1], "identity": '{"a": {"(tuple)": [1]}}', "optimizer": {},
        "model": {"a": torch.ones(2)},
    }  # fmt: skip
    written = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, stream := io.BytesIO(), **options)
        written.append(stream.getvalue())
    return written


def _safetensors(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save

    return [
        save({"layer1.0.conv2.weight": torch.ones(1, 1, 1, 1)}),
        save({"blocks.0.attn.qkv.weight": torch.ones(3, 1)}),
    ]


def _text(*texts: str) -> Seeds:
    return lambda folder: [text.encode() for text in texts]


_DATASET = ("proposals.dataset", "proposals.dataset.verify", "proposals.dataset.proposals_reader")
_SOURCES = ("pipeline.sources.opening", "pipeline.plan", "proposals.tar_headers")
_TRAIN = ("aligndet_train.checkpoint", "aligndet_train.backbones.convert", "aligndet_train.backbones.inspect")
_VOC = (
    "<annotation><filename>a.jpg</filename><size><width>9</width><height>9</height></size><object><name>x</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"
)


def _of_dataset(
    reader: str, place: str, seeds: Callable[[str], Seeds] = _there, read: str = "dataset"
) -> Target:
    place = f"dataset/{place}"
    return Target(reader, place, read, seeds(place), _DATASET, dataset=True)


_SOCO = '{"a": [[1, 2, 3, 4.5], [0, 0, 1e3, 1]], "b": []}'
_RECIPE = '{"mode": "fast", "filter": "ratio3size0008@0.5"}'
_CONFIG = '{"optimizer": {"type": "SGD"}, "views": {}}'

TARGETS: dict[str, Target] = {
    "image": Target("image", "a.jpg", "a.jpg", _images, ("proposals.images", "proposals.jpeg_scans")),
    "tar": Target("tar", "a.tar", "a.tar", _tars, _SOURCES),
    "tar_members": Target("tar_members", "a.tar", "a.tar", _tars, ("proposals.dataset.checks.members",)),
    "parquet": Target("table", "a.parquet", "a.parquet", _parquet, _SOURCES),
    "list": Target("text_list", "a.csv", "a.csv", _text("path,n\na.csv,1\n../x,2\nfile:///x,3\n"), _SOURCES),
    "coco_list": Target("text_list", "a.json", "a.json", _text(_COCO), _SOURCES),
    "coco": Target("coco", "a.json", "a.json", _text(_COCO), ("proposals.convert.coco",)),
    "soco": Target("soco", "a.json", "a.json", _text(_SOCO), ("proposals.convert.soco",)),
    "pickle": Target("pickled", "a.pkl", "a.pkl", _pickles, ("proposals.convert.pickles",)),
    "truth": Target("truth", "a.json", "a.json", _text(_COCO), ("proposals.ground_truth",)),
    "voc": Target("truth", "voc/a.xml", "voc", _text(_VOC), ("proposals.ground_truth",)),
    "manifest": _of_dataset("dataset", layout.MANIFEST, _unsealed),
    "record": _of_dataset("record", "shards/00000.json", _unsealed, "dataset/shards/00000.json"),
    "rows": _of_dataset("dataset", "shards/00000.parquet"),
    "plan": _of_dataset("plan", layout.PLAN, read=f"dataset/{layout.PLAN}"),
    "zarr_chunk": _of_dataset("zarr", "proposals.zarr/boxes/c/0/0"),
    "regions": _of_dataset("zarr", "regions.zarr/00000/zarr.json"),
    "verify_tar": _of_dataset("verified", "shards/00000.tar"),
    "checkpoint": Target("checkpoint", "a.pth", "a.pth", _checkpoints, _TRAIN),
    "weights": Target("weights", "a.pth", "a.pth", _checkpoints, _TRAIN),
    "safetensors": Target("weights", "a.safetensors", "a.safetensors", _safetensors, _TRAIN),
    "recipe": Target("recipe", "a.json", "a.json", _text(_RECIPE), ("proposals.recipe",)),
    "config": Target("config", "a.json", "a.json", _text(_CONFIG), ("aligndet_train.config",)),
}  # fmt: skip
