"""Does the image-domain stage learn here? The output's deviation and k-NN accuracy over some minutes, in one command.

python benchmarks/image_domain.py pack --images PHOTOGRAPHS --labels val.json --labelled VOC/JPEGImages --out PACK
python benchmarks/image_domain.py run --pack PACK --out RESULT [--minutes 5] [--method moco_v2] [--crops proposals]
python benchmarks/image_domain.py measure --labels VOC/val.json --backbone CONFIG.py --size 96      # what others reach

`pack` shrinks the photographs, mines proposals on them (in this process, no Ray) and copies the labelled images: a
folder below 60 MB that can be carried to a machine with a GPU. `run` measures the seconds a step takes, fixes the
number of steps, trains, and writes RESULT/result.json and RESULT/result.svg. Killed, the same command goes on.
`measure` prints the k-NN accuracy of a backbone as it is: that of a mmdet config with the weights the config names.
With --statistics PACK/dataset it also prints that of random weights with the batch statistics of crops from there: what
a run gains before it has learned anything.
"""

import argparse
import dataclasses
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from line_chart import line_chart
from pictures import require_apart, shrink
from tqdm import tqdm

from aligndet_train import ops
from aligndet_train.backbones.registry import find_backbone
from aligndet_train.cli import parse_options
from aligndet_train.config import read_config
from aligndet_train.image_domain.config import CONFIGS, ImageDomainConfig, image_domain_config
from aligndet_train.image_domain.crops import CropStream
from aligndet_train.image_domain.hooks import KNN_LOG
from aligndet_train.image_domain.knn import LabelledCrops, knn_figures, read_labelled
from aligndet_train.image_domain.methods import build_model
from aligndet_train.image_domain.model import ImageDomainModel
from aligndet_train.image_domain.training import pretrain_backbone
from aligndet_train.loader import step_loader
from aligndet_train.plain_config import is_config
from aligndet_train.run_options import RunOptions
from aligndet_train.stream import StreamState
from proposals.dataset import open_dataset
from proposals.dataset.files import write_atomically

PACK_LIMIT = 60e6
LONG_SIDE, QUALITY = 224, 80
PROBE, SKIPPED = 12, 4
# The running mean's momentum is a tenth: what it began with is forgotten by then.
STATISTICS_STEPS, STATISTICS_BATCH = 40, 64
OF_THE_MACHINE = ("command", "pack", "out", "workers")


def pack(images: Path, labels: Path, out: Path, limit: int | None, labelled: Path | None = None) -> None:
    """Make OUT/dataset and OUT/labelled. Raises SystemExit when they are larger than the limit.

    labelled: the folder of the pictures of ``labels``; default images/ beside the json, or its own folder.
    """
    require_apart(out, (images, labels))
    small = out / "images"
    small.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    for path in tqdm(files[:limit], desc="shrink"):
        # Photographs of two folders may have one name, as may a .png and a .jpg.
        target = small / path.relative_to(images)
        target = target if path.suffix == ".jpg" else target.with_name(f"{path.name}.jpg")
        shrink(path, target, LONG_SIDE, QUALITY)
    mine(small, out / "dataset")
    shutil.rmtree(small)
    content = json.loads(labels.read_text())
    (out / "labelled").mkdir(exist_ok=True)
    beside = labels.parent / "images" if (labels.parent / "images").is_dir() else labels.parent
    folder = labelled or beside
    for entry in content["images"]:
        target = out / "labelled" / "images" / entry["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / entry["file_name"], target)
    (out / "labelled" / "labels.json").write_text(json.dumps(content))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")
    if size > PACK_LIMIT:
        raise SystemExit(f"larger than {PACK_LIMIT / 1e6:.0f} MB: give fewer images (--limit)")


def mine(images: Path, out: Path) -> None:
    """A proposal dataset of ``images`` by the shard task alone."""
    from pipeline.begin import begin
    from pipeline.commit import commit
    from pipeline.plan import make_plan
    from pipeline.shard_task import Work, mine_shard
    from pipeline.sources import FolderSource, describe
    from proposals.dataset.identity import JobIdentity
    from proposals.dataset.manifest import library_versions
    from proposals.recipe import Recipe

    source, recipe, per_shard = FolderSource(images), Recipe(), 200
    entries = list(source.entries())
    identity = JobIdentity(
        recipe=recipe,
        source=describe("folder", entries),
        images_per_shard=per_shard,
        versions=library_versions(),
    )
    workspace = begin(out, make_plan(entries, per_shard), identity)
    if workspace.finished is not None:
        return
    work = Work(source, out, recipe, identity.fingerprint())
    fresh = {task.name: mine_shard(task, work) for task in tqdm(list(workspace.pending), desc="mine")}
    commit(workspace, {**workspace.done, **fresh})


def settings(arguments: argparse.Namespace, steps: int) -> ImageDomainConfig:
    """The run's config: the method's own values, for the small photographs of the pack."""
    return image_domain_config(
        {
            "iterations": steps,
            "batch_size": arguments.batch_size,
            "crops": arguments.crops,
            "views.size": arguments.size,
        }
        | parse_options(arguments.cfg_options),
        arguments.method,
    )


def train(arguments: argparse.Namespace, work_dir: Path, steps: int, labelled: LabelledCrops | None) -> float:
    """Run or resume; the seconds it took."""
    started = time.perf_counter()
    options = RunOptions(
        amp=torch.cuda.is_available(), workers=arguments.workers, log_interval=1, checkpoint_interval=200
    )
    interval = max(1, steps // arguments.measurements)
    choice = find_backbone(arguments.backbone)
    pretrain_backbone(
        choice, settings(arguments, steps), arguments.pack / "dataset", work_dir, options, labelled, interval
    )
    return time.perf_counter() - started


def planned_steps(arguments: argparse.Namespace) -> int:
    """``--steps``, or as many as ``--minutes`` hold; decided once and written down, so that a resumed run agrees."""
    plan = arguments.out / "plan.json"
    if plan.is_file():
        return int(json.loads(plan.read_text())["steps"])
    steps = arguments.steps
    if steps is None:
        train(arguments, arguments.out / "probe", PROBE, None)
        times = [record["time"] for record in scalars(arguments.out / "probe")][SKIPPED:]
        steps = max(PROBE, round(60 * arguments.minutes * len(times) / sum(times)))
        shutil.rmtree(arguments.out / "probe")
    write_atomically(plan, json.dumps({"steps": steps}).encode())
    return steps


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """Every logged step, in order; a step logged twice counts once."""
    lines = [
        json.loads(line)
        for file in sorted(work_dir.glob("*/vis_data/scalars.json"))
        for line in file.read_text().splitlines()
    ]
    return sorted({record["step"]: record for record in lines}.values(), key=lambda record: record["step"])


def measure(arguments: argparse.Namespace) -> None:
    """Print the k-NN accuracy of a backbone that was not trained here."""
    choice, kept = find_backbone(arguments.backbone), {}
    if is_config(arguments.backbone):
        named = read_config(Path(arguments.backbone), {}).model.backbone
        kept = {name: named[name] for name in ("weights", "init_cfg") if named.get(name)}
        choice = dataclasses.replace(choice, config={**choice.config, **kept})
    labelled = read_labelled(arguments.labels, arguments.images, arguments.size)
    print(f"{arguments.backbone}, weights: {next(iter(kept.values()), 'random')}, {arguments.size} px")
    for seed in range(1 if kept else arguments.seeds):
        config = image_domain_config({"views.size": arguments.size, "seed": seed, "crops": "proposals"})
        model = build_model(choice, config)
        print_knn(model, labelled, "as it is")
        if arguments.statistics is not None and not kept:
            take_statistics(model, config, arguments.statistics)
            print_knn(model, labelled, "with batch statistics")


def print_knn(model: ImageDomainModel, labelled: LabelledCrops, what: str) -> None:
    """One line."""
    found = knn_figures(labelled.features(model), labelled.labels, labelled.groups)
    print(
        f"k-NN accuracy {100 * found.accuracy:.1f} % of {len(labelled)}, "
        f"with shuffled labels {100 * found.chance:.1f} %, {what}",
        flush=True,
    )


@torch.no_grad()
def take_statistics(model: ImageDomainModel, config: ImageDomainConfig, data: Path) -> None:
    """Let the backbone's batch normalisation see crops of the dataset, as in training, while its weights stay."""
    model.train()
    batches = step_loader(
        open_dataset(data),
        lambda dataset: CropStream(dataset, config),
        StreamState(config.seed, 0, 0),
        batch_size=STATISTICS_BATCH,
        steps=STATISTICS_STEPS,
        window=config.shard_window,
        workers=0,
    )
    for batch in batches:
        views = model.data_preprocessor(batch)["views"]
        model.features(torch.cat(views))


def result(arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """What was run, the curves, and the two figures that the question is about."""
    records = scalars(arguments.out / "run")
    even = settings(arguments, steps).projection_dims ** -0.5
    deviation = [[record["step"], round(record["output_std"] / even, 4)] for record in records]
    knn = [json.loads(line) for line in (arguments.out / "run" / KNN_LOG).read_text().splitlines()]
    return {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "CPU",
        "torch": torch.__version__,
        "arguments": {
            name: str(value) for name, value in vars(arguments).items() if name not in OF_THE_MACHINE
        },
        "steps": steps,
        "seconds": round(sum(record["time"] for record in records), 1),
        "lowest_deviation": min(value for _, value in deviation),
        "final_deviation": deviation[-1][1],
        "knn_chance": knn[0]["knn_chance"],
        "knn_random": knn[0]["knn_accuracy"],
        "knn_final": knn[-1]["knn_accuracy"],
        "deviation": deviation[:: max(1, len(deviation) // 200)],
        "knn": [[record["step"], record["knn_accuracy"]] for record in knn],
    }


def run(arguments: argparse.Namespace) -> None:
    """Train and write the result."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    steps = planned_steps(arguments)
    labelled = read_labelled(arguments.pack / "labelled" / "labels.json", None, arguments.size)
    train(arguments, arguments.out / "run", steps, labelled)
    figures = result(arguments, steps)
    write_atomically(arguments.out / "result.json", json.dumps(figures, indent=1).encode())
    lines = {"output std / even spread": figures["deviation"], "k-NN accuracy": figures["knn"]}
    chart = line_chart(lines, x_label="step", y_label=f"{arguments.method}, {arguments.backbone}", top=1.1)
    write_atomically(arguments.out / "result.svg", chart.encode())
    print(json.dumps({name: value for name, value in figures.items() if name not in ("deviation", "knn")}))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="command", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("--images", type=Path, required=True)
    packing.add_argument("--labels", type=Path, required=True)
    packing.add_argument(
        "--labelled", type=Path, help="folder of their pictures, where it is not beside them"
    )
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--limit", type=int, default=None)
    running = verbs.add_parser("run")
    running.add_argument("--pack", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--backbone", default="resnet18")
    running.add_argument("--method", choices=sorted(CONFIGS), default="simsiam")
    running.add_argument("--minutes", type=float, default=5)
    running.add_argument("--steps", type=int, default=None, help="instead of --minutes")
    running.add_argument("--batch-size", type=int, default=256)
    running.add_argument("--size", type=int, default=112, help="px of a view and of a labelled picture")
    running.add_argument("--crops", choices=("images", "proposals"), default="images")
    running.add_argument("--measurements", type=int, default=10, help="of k-NN accuracy, over the run")
    running.add_argument("--workers", type=int, default=8)
    running.add_argument(
        "--cfg-options", nargs="*", default=[], help="fields of the method's config: lr=0.12 min_crop=64"
    )
    measuring = verbs.add_parser("measure")
    measuring.add_argument("--labels", type=Path, required=True)
    measuring.add_argument("--backbone", required=True)
    measuring.add_argument("--images", type=Path, help="their folder, where it is not beside the json")
    measuring.add_argument("--size", type=int, default=112)
    measuring.add_argument("--statistics", type=Path, help="a mined dataset to take batch statistics from")
    measuring.add_argument("--seeds", type=int, default=3, help="of random weights")
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.images, arguments.labels, arguments.out, arguments.limit, arguments.labelled)
        return
    ops.install()
    (run if arguments.command == "run" else measure)(arguments)


if __name__ == "__main__":
    main()
