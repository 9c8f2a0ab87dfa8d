"""Does pretraining help? Fine-tuning AP with and without it, for several detectors, seeds and data fractions.

    python benchmarks/transfer.py pack POOL --train train.json --val val.json --images DIR --out PACK
    python benchmarks/transfer.py run PACK --work-dir W --budget 540 --parallel 4      # again and again, until done
    python benchmarks/transfer.py report W --out docs/results.md

`pack` shrinks the pictures to 320 px and mines POOL; PACK is all that the machine with the GPU needs. `run`
pretrains each detector on PACK's proposals, then fine-tunes three arms of it on the labelled pictures: `backbone`
(its usual start), `box` (+ box-domain pretraining), `keep` (+ its box predictors). The arms share schedule, data
and seeds; each one's learning rate is the best of one grid on a fifth of the training pictures that is held out
for that alone. Every step is a file, so a run that is stopped goes on; a job that failed stays in the table.
`--ablate` adds the paper's ablations of --detectors. Without a GPU, one detector at half the size is what a core can
do in two hours:

    python benchmarks/transfer.py run PACK --work-dir W --detectors fcos_lite0 --schedules short --fractions 100 \\
        --arms backbone box --rates 0.006 0.012 --image-size 160 --workers 0 \\
        --pretrain-options pretrain.sampled_boxes=2048
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer_report import report

LONG_SIDE = 320
FRACTIONS = (10, 100)
ARMS = ("backbone", "box", "keep")
TUNING_SEED = 100
# Of pretraining's views, at the packed size; smaller pictures get smaller ones.
VIEW_SIDES, VIEW_LONG_SIDE = (192, 224, 256, 288), 448


@dataclass(frozen=True)
class Recipe:
    """One detector's fine-tuning: epochs of the short and the long schedule, and the grid of learning rates.

    ``config`` is a file of transfer_configs/; without, the detector is one that ships with aligndet.
    """

    epochs: dict[str, int]
    grid: tuple[float, ...]
    batch: int = 16
    pretrain_epochs: int = 12
    pretrain_batch: int = 32
    config: str | None = None

    def source(self, detector: str) -> tuple[str, str]:
        """The option that names the detector."""
        if self.config is None:
            return "--detector", detector
        return "--config", str(Path(__file__).parent / "transfer_configs" / self.config)


RECIPES = {
    "fcos_lite0": Recipe({"short": 12, "long": 36}, (0.004, 0.008, 0.016)),
    "retinanet_lite0": Recipe({"short": 12, "long": 36}, (0.004, 0.008, 0.016)),
    "faster_rcnn_lite0": Recipe({"short": 24, "long": 48}, (0.01, 0.02, 0.04)),
    "deformable_detr_lite0": Recipe({"short": 24, "long": 72}, (1e-4, 2e-4, 4e-4), pretrain_epochs=24),
    # Of a size that one core trains in an hour or two.
    "faster_rcnn_160px": Recipe(
        {"short": 24, "long": 36},
        (0.01, 0.02, 0.04),
        pretrain_epochs=6,
        pretrain_batch=16,
        config="faster_rcnn.py",
    ),
    "deformable_detr_160px": Recipe(
        {"short": 24, "long": 72},
        (2e-4, 4e-4, 8e-4),
        pretrain_epochs=6,
        pretrain_batch=16,
        config="deformable_detr.py",
    ),
}

AT_320_PX = [name for name, recipe in RECIPES.items() if recipe.config is None]

# Each changes one thing of the pretraining run, by options of `aligndet pretrain`.
ABLATIONS = {
    "no contrastive loss": ["--cfg-options", "pretrain.contrastive_weight=0"],
    "no regression loss": ["--cfg-options", "pretrain.regression_weight=0"],
    "50 proposals": ["--cfg-options", "pretrain.proposals_per_image=50"],
    "all proposals": ["--cfg-options", "pretrain.proposals_per_image=None"],
    "faster teacher": ["--cfg-options", "pretrain.momentum_start=0.95"],
    "filter 0308": ["@mined_0308"],
    "random boxes": ["@mined_random"],
}


@dataclass(frozen=True)
class Job:
    """One process. Done when ``product`` exists; may start when all of ``needs`` do."""

    name: str
    command: tuple[str, ...]
    product: Path
    needs: tuple[Path, ...] = ()
    labels: dict[str, Any] = field(default_factory=dict)


def aligndet(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "proposals", *(str(argument) for argument in arguments))


def slug(text: str) -> str:
    return text.replace(" ", "-")


def precision(args: argparse.Namespace) -> tuple[str, ...]:
    return ("--amp",) if args.amp else ()


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def views(size: int) -> list[str]:
    """Options that scale pretraining's views with the pictures of fine-tuning."""
    sides = ",".join(str(side * size // LONG_SIDE) for side in VIEW_SIDES)
    return ["--cfg-options", f"pretrain.views.short_sides=({sides})",
            "--cfg-options", f"pretrain.views.long_side={VIEW_LONG_SIDE * size // LONG_SIDE}"]  # fmt: skip


def pretraining(detector: str, args: argparse.Namespace, extra: list[str], name: str) -> list[Job]:
    """Pretrain, then export twice: without and with the box predictors."""
    folder = args.work_dir / "pretrain" / name
    data = args.pack / next((part[1:] for part in extra if part.startswith("@")), "mined")
    options = views(args.image_size) + [part for part in extra if not part.startswith("@")]
    options += [part for option in args.pretrain_options for part in ("--cfg-options", option)]
    images = json.loads((data / "dataset.json").read_text())["totals"]["images"]
    recipe = RECIPES[detector]
    steps = (args.pretrain_epochs or recipe.pretrain_epochs) * images // recipe.pretrain_batch
    run = aligndet("pretrain", *recipe.source(detector), "--data", data, "--work-dir", folder, *precision(args),
                   "--iterations", steps, "--batch-size", recipe.pretrain_batch, "--workers", args.workers,
                   "--checkpoint-interval", 50, *options)  # fmt: skip
    finished = folder / "finished"
    jobs = [Job(f"pretrain {name}", (*run, "&&touch", str(finished)), finished)]
    for arm, flags in (("box", ()), ("keep", ("--keep-predictors",))):
        out = folder / f"{arm}.safetensors"
        jobs.append(
            Job(
                f"export {name} {arm}", aligndet("export", folder / "last.pth", out, *flags), out, (finished,)
            )
        )
    return jobs


def finetuning(args: argparse.Namespace, labels: dict[str, Any], lr: float, split: tuple[str, str]) -> Job:
    """Fine-tune one arm; ``split`` names the annotation files to train and to measure on."""
    detector, arm = labels["detector"], labels["arm"]
    recipe, pack, work, size = RECIPES[detector], args.pack, args.work_dir, args.image_size
    folder = work / "finetune" / "+".join(slug(str(value)) for value in labels.values())
    weights = () if arm == "backbone" else (work / "pretrain" / labels["source"] / f"{arm}.safetensors",)
    train, val = split
    # As many steps on a part of the labels as on all of them: 12 epochs of 42 pictures would teach nothing.
    epochs = recipe.epochs[labels["schedule"]] * 100 // labels.get("fraction", 100)
    command = aligndet(
        "finetune", *recipe.source(detector), "--train", pack / train, "--val", pack / val, "--train-images",
        pack / "labelled", "--val-images", pack / "labelled", "--work-dir", folder, "--epochs", epochs, "--lr", lr,
        "--batch-size", recipe.batch, "--image-size", f"{size}x{size}", "--seed", labels["seed"], *precision(args),
        "--workers", args.workers, "--eval-interval", max(1, epochs // 6),
        *(("--weights", weights[0]) if weights else ()),
    )  # fmt: skip
    product = folder / "finished"
    return Job(" ".join(str(v) for v in labels.values()), (*command, "&&touch", str(product)), product, weights,
               {**labels, "lr": lr})  # fmt: skip


def tuning_jobs(
    detector: str, arm: str, source: str, schedule: str, rates: Sequence[float], args: argparse.Namespace
) -> list[Job]:
    """One fine-tuning per learning rate of the grid, on the pictures kept for that."""
    base = {"stage": "tune", "detector": detector, "arm": arm, "source": source, "schedule": schedule}
    return [
        finetuning(args, {**base, "seed": TUNING_SEED, "rate": lr}, lr, ("tune_train.json", "tune_val.json"))
        for lr in rates
    ]


def best_rate(jobs: list[Job]) -> float | None:
    """The grid's best learning rate, once every one of them has been tried."""
    if not all(job.product.exists() for job in jobs):
        return None
    return max(jobs, key=lambda job: last_figures(job).get("AP", -1.0)).labels["lr"]


def last_figures(job: Job) -> dict[str, float]:
    path = job.product.parent / "results.json"
    return json.loads(path.read_text())["last"] if path.is_file() else {}


def arm_jobs(detector: str, source: str, arms: tuple[str, ...], args: argparse.Namespace) -> list[Job]:
    """Tuning of every arm, and of the tuned ones all fractions and seeds."""
    jobs: list[Job] = []
    for schedule in args.schedules:
        for arm in arms:
            rates = args.rates or RECIPES[detector].grid
            tuning = tuning_jobs(detector, arm, source, schedule, rates, args) if len(rates) > 1 else []
            jobs += tuning
            lr = best_rate(tuning) if tuning else rates[0]
            for fraction in args.fractions if lr is not None else ():
                for seed in range(args.seeds):
                    labels = {"stage": "final", "detector": detector, "arm": arm, "source": source,
                              "schedule": schedule, "fraction": fraction, "seed": seed}  # fmt: skip
                    train = "train.json" if fraction == 100 else f"train.{fraction}@{seed}.json"
                    jobs.append(finetuning(args, labels, lr, (train, "val.json")))
    return jobs


def every_job(args: argparse.Namespace) -> list[Job]:
    """All jobs that are known by now: those of tuned arms appear when their tuning is done."""
    jobs: list[Job] = []
    for detector in args.detectors:
        jobs += pretraining(detector, args, [], detector)
        jobs += arm_jobs(detector, detector, tuple(args.arms), args)
        for name in ABLATIONS if args.ablate == [] else args.ablate or ():
            extra, source = ABLATIONS[name], f"{detector}-{slug(name)}"
            missing = [part for part in extra if part.startswith("@") and not (args.pack / part[1:]).is_dir()]
            if not missing:
                jobs += pretraining(detector, args, extra, source)
                jobs += arm_jobs(detector, source, ("box",), args)
    return jobs


def run_job(job: Job, log_folder: Path) -> int:
    """Run the process; its output goes to a file of its own. "&&touch FILE" marks what ends in more than one file."""
    command = list(job.command)
    marker = Path(command.pop()) if command[-2:-1] == ["&&touch"] else None
    if marker is not None:
        command.pop()
    log_folder.mkdir(parents=True, exist_ok=True)
    if job.labels:
        job.product.parent.mkdir(parents=True, exist_ok=True)
        (job.product.parent / "labels.json").write_text(json.dumps(job.labels))
    with (log_folder / f"{slug(job.name)}.log").open("ab") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code == 0 and marker is not None:
        marker.touch()
    return code


def run(args: argparse.Namespace) -> None:
    """Start jobs whose needs are met, ``parallel`` at a time, until none is left or the budget is spent."""
    if args.amp is None:
        args.amp = has_gpu()
    end, lock, running, failed = time.monotonic() + args.budget, threading.Lock(), set(), set()

    def next_job() -> Job | None:
        with lock:
            for job in every_job(args):
                ready = not job.product.exists() and all(path.exists() for path in job.needs)
                if ready and job.name not in running | failed:
                    running.add(job.name)
                    return job
            return None

    def worker() -> None:
        """Run jobs one after the other; wait while others run that may make new ones ready."""
        while time.monotonic() < end:
            job = next_job()
            if job is None:
                with lock:
                    idle = not running
                if idle:
                    return
                time.sleep(1)
                continue
            start = time.monotonic()
            code = run_job(job, args.work_dir / "logs")
            with lock:
                running.discard(job.name)
                if code:
                    failed.add(job.name)
            print(
                f"{job.name}: exit {code}, {time.monotonic() - start:.0f} s {last_figures(job)}", flush=True
            )

    with ThreadPoolExecutor(args.parallel) as pool:
        for _ in range(args.parallel):
            pool.submit(worker)
    jobs = every_job(args)
    print(
        f"{sum(job.product.exists() for job in jobs)} of {len(jobs)} known jobs are done, {len(failed)} failed"
    )


def pack(args: argparse.Namespace) -> None:
    """Shrink, mine, split: everything `run` needs, in one folder."""
    import cv2

    def shrink(source: Path, target: Path) -> float:
        image = cv2.imread(str(source))
        factor = min(1.0, LONG_SIDE / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), small, [cv2.IMWRITE_JPEG_QUALITY, args.quality])
        return factor

    for source in sorted(args.pool.rglob("*.jpg")):
        shrink(source, args.out / "pool" / source.name)
    for name, path in (("train", args.train), ("val", args.val)):
        content = json.loads(path.read_text())
        factors = {}
        for image in content["images"]:
            factor = shrink(args.images / image["file_name"], args.out / "labelled" / image["file_name"])
            factors[image["id"]] = factor
            image["width"], image["height"] = (round(image[side] * factor) for side in ("width", "height"))
        for box in content["annotations"]:
            factor = factors[box["image_id"]]
            box["bbox"] = [value * factor for value in box["bbox"]]
            box["area"] = box.get("area", box["bbox"][2] * box["bbox"][3]) * factor**2
        (args.out / f"{name}.json").write_text(json.dumps(content))
    subprocess.run(
        aligndet("split", args.out / "train.json", args.out, "--percent", 10, "--seeds", 3), check=True
    )
    hold_out(args.out)
    pool = args.out / "pool"
    subprocess.run(aligndet("mine", pool, args.out / "mined"), check=True)
    if args.clusters:
        cluster(args.out / "mined", args.clusters)
    if args.ablate:
        filtered = ("--filter", "ratio3size0308@0.5")
        subprocess.run(aligndet("mine", pool, args.out / "mined_0308", *filtered), check=True)
        randomise(args.out / "mined", pool, args.out / "mined_random")
    shutil.rmtree(pool)  # every picture is in the datasets' tars
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def cluster(mined: Path, count: int) -> None:
    """Give every box a cluster, the classes of DETR's pretraining; its features, five times the pictures, go."""
    subprocess.run(aligndet("regions", mined, "--backbone", "fcos_lite0"), check=True)
    subprocess.run(aligndet("cluster", mined, "--k", count), check=True)
    shutil.rmtree(mined / "regions.zarr")


def hold_out(folder: Path) -> None:
    """A fifth of the training pictures, on which learning rates are chosen and nothing is reported."""
    content = json.loads((folder / "train.json").read_text())
    held = {image["id"] for image in content["images"][::5]}
    for name, inside in (("tune_train", False), ("tune_val", True)):
        part = {
            **content,
            "images": [image for image in content["images"] if (image["id"] in held) is inside],
            "annotations": [box for box in content["annotations"] if (box["image_id"] in held) is inside],
        }
        (folder / f"{name}.json").write_text(json.dumps(part))


def randomise(mined: Path, pool: Path, out: Path) -> None:
    """The same pictures with as many boxes of the same sizes, put anywhere: what selective search has to beat."""
    import numpy as np

    listed = out.with_suffix(".json")
    subprocess.run(aligndet("convert", mined, listed, "--to", "coco"), check=True)
    content, rng = json.loads(listed.read_text()), np.random.default_rng(0)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for box in content["annotations"]:
        (width, height), (_, _, w, h) = sizes[box["image_id"]], box["bbox"]
        box["bbox"] = [float(rng.uniform(0, width - w)), float(rng.uniform(0, height - h)), w, h]
    listed.write_text(json.dumps(content))
    subprocess.run(aligndet("convert", listed, out, "--to", "dataset", "--images", pool), check=True)
    listed.unlink()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    packing = verbs.add_parser("pack", help="shrink the pictures and mine the pool")
    packing.add_argument("pool", type=Path, help="folder of unlabelled photographs")
    for name in ("train", "val", "images", "out"):
        packing.add_argument(f"--{name}", type=Path, required=True)
    packing.add_argument(
        "--ablate", action="store_true", help="also the datasets of the ablations: twice the size"
    )
    packing.add_argument("--quality", type=int, default=85, help="of the shrunk JPEGs")
    packing.add_argument(
        "--clusters", type=int, help="clusters that DETR's class branch learns [default: none]"
    )
    packing.set_defaults(verb=pack)
    running = verbs.add_parser("run", help="pretrain and fine-tune until done, or the budget is spent")
    running.add_argument("pack", type=Path)
    running.add_argument("--work-dir", type=Path, required=True)
    running.add_argument("--detectors", nargs="+", default=list(AT_320_PX), choices=list(RECIPES))
    running.add_argument("--schedules", nargs="+", default=["short", "long"])
    running.add_argument("--fractions", nargs="+", type=int, default=FRACTIONS)
    running.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    running.add_argument("--pretrain-options", nargs="*", default=[], help="key=value changes to pretraining")
    running.add_argument(
        "--rates",
        nargs="+",
        type=float,
        help="learning rates to choose from, not the recipe's; one: no choice",
    )
    running.add_argument("--seeds", type=int, default=3, help="fine-tunings of each arm")
    running.add_argument(
        "--image-size", type=int, default=LONG_SIDE, help="longer side in fine-tuning, in px"
    )
    running.add_argument("--workers", type=int, default=3, help="processes that load images, of each job")
    running.add_argument("--parallel", type=int, default=1)
    running.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="compute in bfloat16 [default: where there is a GPU; on CPUs without instructions for it it is slow]",
    )
    running.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds after which nothing is started"
    )
    running.add_argument("--pretrain-epochs", type=int, help="epochs of pretraining, not the recipe's")
    running.add_argument(
        "--ablate", nargs="*", choices=list(ABLATIONS), metavar="NAME",
        help=f"pretrain and fine-tune these too: {', '.join(ABLATIONS)}; without a name: all",
    )  # fmt: skip
    running.set_defaults(verb=run)
    reporting = verbs.add_parser("report", help="the table")
    reporting.add_argument("results", type=Path, nargs="+", help="work folders of `run`, or files of --json")
    reporting.add_argument("--out", type=Path, help="page that gets the table, between its two markers")
    reporting.add_argument("--section", default="transfer", help="name in the page's two markers")
    reporting.add_argument("--json", type=Path, help="file for the figures of every run")
    reporting.add_argument("--svg", type=Path, help="file for the learning curves")
    reporting.set_defaults(verb=report)
    arguments = parser.parse_args()
    arguments.verb(arguments)


if __name__ == "__main__":
    main()
