"""Everything that reads a stranger's file, by name: a path in, something printable out, or an AlignDetError."""

from collections.abc import Callable
from pathlib import Path


def image(path: Path) -> object:
    """The guarded decode that mining and training share."""
    from proposals.images import decode_bgr

    return decode_bgr(path.read_bytes()).bgr.shape


def fetched(path: Path) -> object:
    """The bytes of an image file, before anybody decodes them."""
    from proposals.fetch import fetch

    return len(fetch(str(path)))


def tar(path: Path) -> object:
    """A tar as a source of images: listed, planned, and every member read."""
    from pipeline.sources.tars import TarSource

    return _mined(TarSource(str(path.parent), (path.name,)))


def tar_members(path: Path) -> object:
    """A tar as `aligndet verify --deep` goes through it."""
    from proposals.dataset.checks.members import tar_faults
    from proposals.dataset.tables import SCHEMA

    return list(tar_faults(path, SCHEMA.empty_table().combine_chunks()))


def table(path: Path) -> object:
    """A Parquet file as a source of images."""
    from pipeline.sources.opening import open_source

    return _mined(open_source(str(path)))


def text_list(path: Path) -> object:
    """A list, or a COCO json, as a source of images."""
    from pipeline.sources.opening import open_source

    return _mined(open_source(str(path), "coco" if path.suffix == ".json" else "list"))


def _mined(source) -> list[str]:
    from pipeline.plan import make_plan, tasks
    from proposals.images import ImageRejected

    plan, found = make_plan(source.entries(), 4), []
    for uri in (uri for task in tasks(plan) for uri in task.uris):
        try:
            found.append(f"{len(source.read(uri))} bytes")
        except ImageRejected as error:
            found.append(error.reason)
    return found


def dataset(path: Path) -> object:
    """A finished dataset: every box, and every image's bytes."""
    from proposals.dataset import open_dataset

    return [(record.uri, record.boxes.shape, len(record.image_bytes())) for record in open_dataset(path)]


def columns(path: Path) -> object:
    """The boxes of a dataset, as one table."""
    from proposals.dataset import open_dataset

    return open_dataset(path).table(["boxes"]).num_rows


def verified(path: Path) -> object:
    """What `aligndet verify --deep` says of a dataset."""
    from proposals.dataset.verify import verify_dataset

    return [f"{problem.file}: {problem.what}" for problem in verify_dataset(path, deep=True).problems]


def figures(path: Path) -> object:
    """What `aligndet stats` and `report` say of a dataset's rejected images."""
    from proposals.dataset import open_dataset
    from proposals.report.numbers import collect

    return collect(open_dataset(path)).rejected


def scored(path: Path) -> object:
    """How many images of a dataset `aligndet recall` and `report --gt` pair with ground truth of one cat."""
    import numpy as np

    from proposals.dataset import open_dataset
    from proposals.ground_truth import GroundTruth
    from proposals.quality import measure_dataset

    size, box, zero = np.zeros((1, 2), np.int64), np.array([[10.0, 10, 80, 60]]), np.zeros(1, np.int64)
    truth = GroundTruth(
        ["cat.jpg"], size, np.array([0, 1]), box, np.array([4800.0]), *np.zeros((2, 1), bool), zero, ("cat",)
    )
    return measure_dataset(open_dataset(path), truth)[1].paired


def record(path: Path) -> object:
    """A commit record."""
    from proposals.dataset.manifest import read_record

    return read_record(path).shard.name


def zarr(path: Path) -> object:
    """proposals.zarr, region features and clusters of a dataset, whichever it has."""
    from proposals.dataset.clusters import read_clusters
    from proposals.dataset.manifest import read_manifest
    from proposals.dataset.proposals_reader import ProposalReader
    from proposals.dataset.regions import RegionStore

    manifest, store = read_manifest(path), RegionStore(path)
    store.identity()
    regions = [store.read(shard).shape for shard in manifest.shards if store.has(shard)]
    reader = ProposalReader(path)
    batch = reader[0 : len(reader)]
    return len(batch.boxes), len(reader.keys), regions, read_clusters(path, manifest)


def plan(path: Path) -> object:
    """plan.parquet, as resuming and merging read it."""
    from pipeline.plan import PlanFile, tasks
    from proposals.dataset.assemble import read_identity, read_plan

    return read_identity(path).images_per_shard, len(read_plan(path)), len(list(tasks(PlanFile(path))))


def planned(path: Path) -> object:
    """plan.parquet a row group at a time, as a job of millions reads it."""
    from pipeline.plan import PlanFile, tasks

    return len(list(tasks(PlanFile(path))))


def coco(path: Path) -> object:
    """Proposals in COCO's form, and the ids in it."""
    from proposals.convert.coco import CocoSource, read_image_ids

    return [(image.uri, image.boxes.shape) for image in CocoSource(path).images()], read_image_ids(path)


def soco(path: Path) -> object:
    """Proposals in SoCo's form."""
    from proposals.convert.soco import SocoSource

    return [(image.uri, image.boxes.shape) for image in SocoSource(path).images()]


def pickled(path: Path) -> object:
    """Proposals in detectron2's or mmdet's form."""
    from proposals.convert.pickles import PickleSource

    return [(image.uri, image.boxes.shape) for image in PickleSource(path).images()]


def truth(path: Path) -> object:
    """Ground truth: a COCO json or a folder of VOC xml."""
    from proposals.ground_truth import read_ground_truth

    return read_ground_truth(path).boxes.shape


def checkpoint(path: Path) -> object:
    """A checkpoint of `aligndet pretrain`, as resuming reads it."""
    from aligndet_train.checkpoint import load_checkpoint

    return sorted(load_checkpoint(path))


def weights(path: Path) -> object:
    """A weights file, as `backbone inspect`, `--backbone-weights`, `finetune` and `evaluate` read it."""
    from aligndet_train.backbones.convert import convert
    from aligndet_train.backbones.inspect import headline
    from aligndet_train.backbones.trained_with import detector_trained_with

    detector_trained_with(path)
    return headline(convert(path))


def exported(path: Path) -> object:
    """A checkpoint, as `aligndet export` reads it."""
    from aligndet_train.export import export

    return len(export(path, path.with_suffix(".out.safetensors")).loaded)


def recipe(path: Path) -> object:
    """A recipe, as a manifest holds it."""
    from pydantic import ValidationError

    from proposals.recipe import Recipe

    try:
        return Recipe.model_validate_json(path.read_bytes()).fingerprint()
    except ValidationError as error:  # which the manifest's reader turns into a sentence
        return error.title


def config(path: Path) -> object:
    """The `pretrain` settings of a config file, as plain data."""
    import json

    from aligndet_train.config import pretrain_config

    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "no JSON"
    return pretrain_config(content, "a test") if isinstance(content, dict) else "no dictionary"


READERS: dict[str, Callable[[Path], object]] = {
    function.__name__: function
    for function in (
        image, fetched, tar, tar_members, table, text_list, dataset, columns, verified, figures, scored, record, zarr,
        plan, planned, coco, soco, pickled, truth, checkpoint, weights, exported, recipe, config,
    )
}  # fmt: skip
