"""What `benchmarks/transfer.py run` has to do: one process for every pretraining, export and fine-tuning.

A job's folder says how it ended: `finished`, or `failed` with the name and the exit code. `settings.json` beside it
says what it was asked for, so that a work folder is never filled by two different studies.
"""

import argparse
import difflib
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proposals.dataset.files import write_atomically

LONG_SIDE = 320
FRACTIONS = (10, 100)
ARMS = ("backbone", "box", "keep")
# Of dense heads, where it is asked for: `box` but for the class branch.
NO_CLASS_BRANCH = "no-class-branch"
TUNING_SEED = 100
# Of pretraining's views, at the packed size; smaller pictures get smaller ones.
VIEW_SIDES, VIEW_LONG_SIDE = (192, 224, 256, 288), 448
# They change how fast a result comes, not the result.
OF_THE_MACHINE = ("--workers",)
FLAGS = ("--amp",)


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
    "fcos_resnet18": Recipe({"short": 12, "long": 36}, (0.004, 0.008, 0.016), config="fcos_resnet18.py"),
    # Of a size that one core trains in an hour or two.
    "faster_rcnn_160px": Recipe(
        {"short": 24, "long": 36},
        (0.01, 0.02, 0.04),
        pretrain_epochs=6,
        pretrain_batch=16,
        config="faster_rcnn_160px.py",
    ),
    "deformable_detr_160px": Recipe(
        {"short": 24, "long": 36},
        (2e-4, 4e-4, 8e-4),
        pretrain_epochs=6,
        pretrain_batch=16,
        config="deformable_detr_160px.py",
    ),
}

WITHOUT_WEIGHTS = ("fcos_resnet18",)
DENSE = ("fcos_lite0", "retinanet_lite0", "fcos_resnet18")
AT_320_PX = [name for name, recipe in RECIPES.items() if recipe.config is None]

# Each changes one thing of the pretraining run, by options of `aligndet pretrain`; "@" names a dataset of the pack.
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
    """One process. Done when ``product`` exists; may start when all of ``needs`` do.

    marked: ``product`` is an empty file that says so, as what the process makes is more than one. labels: of a
    fine-tuning, what the report says of it. inputs: files whose content belongs to what was asked for.
    """

    name: str
    command: tuple[str, ...]
    product: Path
    needs: tuple[Path, ...] = ()
    labels: dict[str, Any] = field(default_factory=dict)
    marked: bool = True
    inputs: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """Of the product."""
        return self.product.parent

    @property
    def failure(self) -> Path:
        """There when the process ended by itself with an error: the job's name and the exit code, as JSON."""
        return self.product.with_name("failed" if self.marked else f"{self.product.name}.failed")

    def settings(self) -> list[str]:
        """What was asked for, a line each: no folder that may move, nothing that is the machine's."""
        digests = [
            f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" for path in self.inputs
        ]
        return [*_lines(iter(self.command[3:])), *digests]


def _lines(parts: Iterator[str]) -> Iterator[str]:
    """An option with its value; of a path, the name."""
    for part in parts:
        value = next(parts) if part.startswith("--") and part not in FLAGS else ""
        if part not in OF_THE_MACHINE:
            shown = value if "=" in value else Path(value).name
            yield f"{part} {shown}" if value else Path(part).name


def aligndet(*arguments: object) -> tuple[str, ...]:
    """A command of aligndet, by this Python."""
    return (sys.executable, "-m", "proposals", *(str(argument) for argument in arguments))


def slug(text: str) -> str:
    """``text`` as part of a file's name."""
    return text.replace(" ", "-")


def precision(args: argparse.Namespace) -> tuple[str, ...]:
    """The option that chooses it."""
    return ("--amp",) if args.amp else ()


def views(size: int) -> list[str]:
    """Options that scale pretraining's views with the pictures of fine-tuning."""
    sides = ",".join(str(side * size // LONG_SIDE) for side in VIEW_SIDES)
    return ["--cfg-options", f"pretrain.views.short_sides=({sides})",
            "--cfg-options", f"pretrain.views.long_side={VIEW_LONG_SIDE * size // LONG_SIDE}"]  # fmt: skip


def own_backbone(detector: str, args: argparse.Namespace) -> Path | None:
    """The file that every arm's backbone begins from. Ends the process where it is missing, or not given and needed."""
    path: Path | None = args.backbone_weights
    if path is not None and not path.is_file():
        sys.exit(f"--backbone-weights {path}: no such file; `aligndet pretrain-backbone` writes one")
    if path is None and detector in WITHOUT_WEIGHTS:
        sys.exit(f"{detector} has no weights of its own: give --backbone-weights B/backbone.pth")
    return path


def pretraining(
    detector: str, args: argparse.Namespace, extra: list[str], name: str, arms: Sequence[str]
) -> list[Job]:
    """Pretrain, then export without and with the box predictors, and what else ``arms`` begin from."""
    folder = args.work_dir / "pretrain" / name
    data = args.pack / next((part[1:] for part in extra if part.startswith("@")), "mined")
    described = data / "dataset.json"
    if not described.is_file():
        sys.exit(f"{described} is missing: make PACK with `transfer.py pack`, for this job with --ablate")
    options = views(args.image_size) + [part for part in extra if not part.startswith("@")]
    options += [part for option in args.pretrain_options for part in ("--cfg-options", option)]
    inputs = [described]
    if (backbone := own_backbone(detector, args)) is not None:
        options += ["--backbone-weights", str(backbone)]
        inputs.append(backbone)
    images = json.loads(described.read_text())["totals"]["images"]
    recipe = RECIPES[detector]
    batch = args.pretrain_batch or recipe.pretrain_batch
    steps = (args.pretrain_epochs or recipe.pretrain_epochs) * images // batch
    run = aligndet("pretrain", *recipe.source(detector), "--data", data, "--work-dir", folder, *precision(args),
                   "--iterations", steps, "--batch-size", batch, "--workers", args.workers,
                   "--checkpoint-interval", 50, *options)  # fmt: skip
    return [Job(f"pretrain {name}", run, folder / "finished", inputs=tuple(inputs)), *exports(folder, arms)]


def exports(folder: Path, arms: Sequence[str]) -> list[Job]:
    """What fine-tunings begin from, of the pretraining in ``folder``."""
    jobs, whole = [], folder / "box.safetensors"
    for arm, flags in (("box", ()), ("keep", ("--keep-predictors",))):
        out = folder / f"{arm}.safetensors"
        command = aligndet("export", folder / "last.pth", out, *flags)
        jobs.append(Job(f"export {folder.name} {arm}", command, out, (folder / "finished",), marked=False))
    if NO_CLASS_BRANCH in arms:
        out = folder / f"{NO_CLASS_BRANCH}.safetensors"
        script = str(Path(__file__).parent / "without_class_branch.py")
        command = (sys.executable, script, str(whole), str(out))
        jobs.append(Job(f"export {folder.name} {NO_CLASS_BRANCH}", command, out, (whole,), marked=False))
    return jobs


def finetuning(args: argparse.Namespace, labels: dict[str, Any], lr: float, split: tuple[str, str]) -> Job:
    """Fine-tune one arm; ``split`` names the annotation files to train and to measure on."""
    detector, arm = labels["detector"], labels["arm"]
    recipe, pack, work, size = RECIPES[detector], args.pack, args.work_dir, args.image_size
    folder = work / "finetune" / "+".join(slug(str(value)) for value in labels.values())
    backbone = own_backbone(detector, args)
    exported = work / "pretrain" / labels["source"] / f"{arm}.safetensors"
    needs, begin = (exported,), ("--weights", exported)
    if arm == "backbone":
        needs, begin = (), ("--backbone-weights", backbone) if backbone else ()
    files = tuple(pack / name for name in split)
    if missing := [str(path) for path in files if not path.is_file()]:
        sys.exit(f"{', '.join(missing)} missing: make PACK with `transfer.py pack --seeds ... --percent ...`")
    # As many steps on a part of the labels as on all of them: 12 epochs of 42 pictures would teach nothing.
    epochs = recipe.epochs[labels["schedule"]] * 100 // labels.get("fraction", 100)
    command = aligndet(
        "finetune", *recipe.source(detector), "--train", files[0], "--val", files[1], "--train-images",
        pack / "labelled", "--val-images", pack / "labelled", "--work-dir", folder, "--epochs", epochs, "--lr", lr,
        "--batch-size", recipe.batch, "--image-size", f"{size}x{size}", "--seed", labels["seed"], *precision(args),
        "--workers", args.workers, "--eval-interval", max(1, epochs // 6),
        *begin,
    )  # fmt: skip
    name = " ".join(str(value) for value in labels.values())
    inputs = files if backbone is None else (*files, backbone)
    return Job(name, command, folder / "finished", needs, {**labels, "lr": lr}, inputs=inputs)


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
    """The grid's best learning rate, once every one of them was tried; a rate that diverges is none."""
    done = [job for job in jobs if job.product.exists()]
    if not done or not all(job.product.exists() or job.failure.exists() for job in jobs):
        return None
    rate: float = max(done, key=lambda job: last_figures(job).get("AP", -1.0)).labels["lr"]
    return rate


def settled_rate(tuning: list[Job]) -> float | None:
    """The rate that fine-tunings of the arm were begun with; a tuning that ends later does not change it."""
    labels, work = tuning[0].labels, tuning[0].folder.parent
    arm = "+".join(slug(labels[name]) for name in ("detector", "arm", "source", "schedule"))
    begun = sorted(work.glob(f"final+{arm}+*/labels.json"))
    return float(json.loads(begun[0].read_text())["lr"]) if begun else None


def last_figures(job: Job) -> dict[str, float]:
    """Of a fine-tuning's last evaluation so far."""
    path = job.folder / "results.json"
    figures: dict[str, float] = json.loads(path.read_text())["last"] if path.is_file() else {}
    return figures


def arm_jobs(detector: str, source: str, arms: tuple[str, ...], args: argparse.Namespace) -> list[Job]:
    """Tuning of every arm, and of the tuned ones all fractions and seeds."""
    jobs: list[Job] = []
    for schedule in args.schedules:
        for arm in arms:
            rates = args.rates or RECIPES[detector].grid
            tuning = tuning_jobs(detector, arm, source, schedule, rates, args) if len(rates) > 1 else []
            jobs += tuning
            lr = (settled_rate(tuning) or best_rate(tuning)) if tuning else rates[0]
            for fraction in args.fractions if lr is not None else ():
                for seed in range(args.seeds):
                    labels = {"stage": "final", "detector": detector, "arm": arm, "source": source,
                              "schedule": schedule, "fraction": fraction, "seed": seed}  # fmt: skip
                    train = "train.json" if fraction == 100 else f"train.{fraction}@{seed}.json"
                    jobs.append(finetuning(args, labels, lr, (train, "val.json")))
    return jobs


def every_job(args: argparse.Namespace) -> list[Job]:
    """All jobs that are known by now: those of tuned arms appear when their tuning is done.

    Ends the process when the pack lacks what one of them reads.
    """
    if NO_CLASS_BRANCH in args.arms and (other := set(args.detectors).difference(DENSE)):
        sys.exit(f"--arms {NO_CLASS_BRANCH} is for dense heads, not for {', '.join(sorted(other))}")
    jobs: list[Job] = []
    for detector in args.detectors:
        jobs += pretraining(detector, args, [], detector, args.arms)
        jobs += arm_jobs(detector, detector, tuple(args.arms), args)
        for name in ABLATIONS if args.ablate == [] else args.ablate or ():
            source = f"{detector}-{slug(name)}"
            jobs += pretraining(detector, args, ABLATIONS[name], source, ("box",))
            jobs += arm_jobs(detector, source, ("box",), args)
    return jobs


# What a process returns that a shell's Ctrl-C or SIGTERM reached, and that ended in order.
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


_running = set[subprocess.Popen[bytes]]()
_stopping = threading.Event()


def stop_jobs() -> None:
    """Ask every process that runs, or is begun from now on, to end in order; they go on when they are started again."""
    _stopping.set()
    for process in list(_running):
        process.terminate()


def run_job(job: Job, log_folder: Path) -> int:
    """Run the process and write down how it ended; its output goes to a file of its own.

    A process that a signal ended, or that ended itself because of one, has not failed: it goes on when it is started
    again.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    job.failure.unlink(missing_ok=True)
    if job.marked:
        write_atomically(job.folder / "settings.json", json.dumps(job.settings(), indent=1).encode())
    if job.labels:
        write_atomically(job.folder / "labels.json", json.dumps(job.labels).encode())
    with (
        (log_folder / f"{slug(job.name)}.log").open("ab") as log,
        subprocess.Popen(job.command, stdout=log, stderr=log) as process,
    ):
        _running.add(process)
        if _stopping.is_set():
            process.terminate()
        code = process.wait()
    _running.discard(process)
    if code > 0 and code not in _STOPPED:
        job.failure.write_text(json.dumps({"failed": job.name, "exit": code}) + "\n")
    if code == 0 and job.marked:
        job.product.touch()
    return code


def refuse_other_settings(job: Job) -> None:
    """End the process when the job's folder holds what was asked for otherwise."""
    written = job.folder / "settings.json"
    if not job.marked or not written.is_file():
        return
    before, now = json.loads(written.read_text()), job.settings()
    if before != now:
        changes = [line for line in difflib.ndiff(before, now) if line[0] in "+-"]
        lines = "\n  ".join(changes)
        sys.exit(f"{job.folder} was begun with other settings:\n  {lines}\nTake another --work-dir for these")
