"""A pretraining run made definite: its classes, its length, what it continues, and what may not change meanwhile."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size

from aligndet_train.checkpoint import INITIAL_WEIGHTS, decoded, encoded, saved_run
from aligndet_train.config import PretrainConfig, RunConfig, head_type
from aligndet_train.detectors import adapter_for
from aligndet_train.initial_weights import files_begun_from
from aligndet_train.resumable import (
    ResumablePlan,
    dataset_identity,
    require_one_dataset,
    require_one_start,
)
from aligndet_train.run_options import RunOptions
from proposals.dataset import ProposalDataset
from proposals.dataset.clusters import read_cluster_record
from proposals.errors import AlignDetError


@dataclass(frozen=True, kw_only=True)
class Plan(ResumablePlan):
    """Of the box-domain stage. run: with its classes made definite."""

    run: RunConfig


def plan_run(run: RunConfig, dataset: ProposalDataset, work_dir: Path, options: RunOptions) -> Plan:
    """What ``run`` comes to on ``dataset`` in ``work_dir``.

    Raises AlignDetError when that holds another run, when the ranks see other datasets, and what
    ``with_classes`` raises.
    """
    require_one_dataset(dataset)
    run = with_classes(run, dataset)
    steps = total_steps(run.pretrain, len(dataset), get_world_size())
    identity = run_identity(run, dataset, steps, options)
    saved = saved_run(work_dir, identity) if options.resume else None
    if saved and INITIAL_WEIGHTS in saved["identity"]:
        # Known while the run lasts, also when the file is gone meanwhile.
        identity.setdefault(INITIAL_WEIGHTS, saved["identity"][INITIAL_WEIGHTS])
    require_one_start(work_dir, int(saved["step"]) if saved else 0)
    return Plan(
        run=run,
        dataset=dataset,
        work_dir=work_dir,
        options=options,
        steps=steps,
        identity=identity,
        saved=saved,
    )


def with_classes(run: RunConfig, dataset: ProposalDataset) -> RunConfig:
    """``run`` with the number of classes made definite, where its family keeps a class branch.

    Raises AlignDetError when the dataset's clusters are damaged, or more than the classes asked for.
    """
    if not adapter_for(run.stock_model["type"], head_type(run.stock_model)).has_classes:
        return run
    record = read_cluster_record(dataset.root)
    clusters, asked = 1 if record is None else record.k, run.pretrain.classes
    if asked is not None and asked < clusters:
        raise AlignDetError(
            f"{dataset.root} has {clusters} clusters, pretrain.classes is {asked}: leave it out to take the dataset's"
        )
    return dataclasses.replace(run, pretrain=dataclasses.replace(run.pretrain, classes=asked or clusters))


def total_steps(config: PretrainConfig, images: int, world_size: int) -> int:
    """Steps of the run: ``iterations``, or the epochs' worth of global batches."""
    if config.iterations is not None:
        return config.iterations
    return max(1, config.epochs * images // (config.batch_size * world_size))


REVISION = 2
"""Of what a step computes: counted up when the same settings give another result. 2: other resizing and projectors."""


def run_identity(run: RunConfig, dataset: ProposalDataset, steps: int, options: RunOptions) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued, as plain JSON data."""
    pretrain = dataclasses.asdict(run.pretrain)
    # Ranks may change on resume, the global batch may not.
    pretrain["global_batch"] = pretrain.pop("batch_size") * get_world_size()
    identity: dict[str, Any] = {
        "revision": REVISION,
        "config": run.name,
        "stock_model": run.stock_model,
        "pretrain": pretrain,
        "steps": steps,
        "amp": options.amp,
        "dataset": dataset_identity(dataset),
    }
    if began := files_begun_from(run.stock_model["backbone"]):
        identity[INITIAL_WEIGHTS] = began
    if run.pretrain.classes is not None and (record := read_cluster_record(dataset.root)) is not None:
        # As many clusters of another seed, or of other features, are other classes.
        files = "".join(f"{entry.path} {entry.sha256}\n" for entry in record.files)
        identity["clusters"] = hashlib.sha256(files.encode()).hexdigest()
    return decoded(encoded(identity))
