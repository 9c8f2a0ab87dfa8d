"""Does pretraining help? Fine-tuning AP with and without it, for several detectors, seeds and data fractions.

    python benchmarks/transfer.py pack POOL --train train.json --val val.json --images DIR --out PACK
    python benchmarks/transfer.py run PACK --work-dir W --budget 540 --parallel 4      # again and again, until done
    python benchmarks/transfer.py report W --out docs/studies/first.md

`pictures` makes what `pack` is given out of COCO's and Pascal VOC's archives, for the pictures of docs/results.md.
`pack` shrinks the pictures to 320 px and mines POOL; PACK is all that the machine with the GPU needs. `run`
pretrains each detector on PACK's proposals, then fine-tunes three arms of it on the labelled pictures: `backbone`
(its usual start), `box` (+ box-domain pretraining), `keep` (+ its box predictors). A fourth is run when it is named,
`no-class-branch`: `box` without that branch of a dense head. The arms share schedule, data
and seeds, not the weight decay, which the paper halves from pretrained weights; each one's learning rate is the best of
one grid on a fifth of the training pictures that is held out for that alone. Every step is a file, so a run that is
stopped goes on; it exits with 0 when all is done, 75 when the budget ended before, 1 when a job failed. The report
names those; `run --retry-failed` tries them again.
`--ablate` adds the paper's ablations of --detectors. `--detectors fcos_resnet18 --backbone-weights B/backbone.pth`
puts a backbone of `aligndet pretrain-backbone` below every arm: no label before fine-tuning. Pretraining reads no
labelled picture: a second target, packed with the same POOL and run with the same options, takes that of the first
(`mkdir W2; cp -r W/pretrain W2/`).
Without a GPU, one detector at half the size is what a core can do in two hours:

    python benchmarks/transfer.py run PACK --work-dir W --detectors fcos_lite0 --schedules short --fractions 100 \\
        --arms backbone box --rates 0.006 0.012 --image-size 160 --workers 0 \\
        --pretrain-options pretrain.sampled_boxes=2048
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from transfer_jobs import (
    ABLATIONS,
    ARMS,
    AT_320_PX,
    FRACTIONS,
    LONG_SIDE,
    NO_CLASS_BRANCH,
    RECIPES,
    Job,
    every_job,
    last_figures,
    refuse_other_settings,
    run_job,
    stop_jobs,
)
from transfer_report import report


class Runner:
    """Starts jobs whose needs are met, ``parallel`` at a time, until none is left or the budget is spent.

    known: all jobs that there are by now; called before every start, as finished ones make new ones.
    """

    def __init__(self, known: Callable[[], list[Job]], logs: Path, parallel: int, budget: float) -> None:
        self.known, self.logs, self.parallel = known, logs, parallel
        self.end = time.monotonic() + budget
        self.lock, self.running, self.tried = threading.Lock(), set[str](), set[str]()

    def run(self) -> None:
        """See the class. Raises what a worker raised."""
        with ThreadPoolExecutor(self.parallel) as pool, self._stopping_jobs():
            workers = [pool.submit(self._work) for _ in range(self.parallel)]
            # Here, not at the pool's end: a signal's exception is raised where the main thread waits.
            wait(workers)
        for worker in workers:
            worker.result()

    @contextmanager
    def _stopping_jobs(self) -> Iterator[None]:
        """A shell's Ctrl-C or SIGTERM ends the jobs, too, and no other is begun: they would run on unseen."""
        former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            yield
        except BaseException:
            self.end = 0.0
            stop_jobs()
            raise
        finally:
            signal.signal(signal.SIGTERM, former)

    def _work(self) -> None:
        """Run jobs one after the other; wait while others run that may make new ones ready."""
        while time.monotonic() < self.end:
            with self.lock:
                job, idle = self._next(), not self.running
                if job is not None:
                    self.running.add(job.name)
                    self.tried.add(job.name)
            if job is not None:
                self._do(job)
            elif idle:
                return
            else:
                time.sleep(1)

    def _next(self) -> Job | None:
        """The first job that is neither done, nor failed, nor tried, and has all it needs."""
        for job in self.known():
            ended = job.product.exists() or job.failure.exists() or job.name in self.tried
            if not ended and all(path.exists() for path in job.needs):
                refuse_other_settings(job)
                return job
        return None

    def _do(self, job: Job) -> None:
        start = time.monotonic()
        try:
            code = run_job(job, self.logs)
        finally:
            with self.lock:
                self.running.discard(job.name)
        print(f"{job.name}: exit {code}, {time.monotonic() - start:.0f} s {last_figures(job)}", flush=True)


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def run(args: argparse.Namespace) -> None:
    """Run what is left; ends the process with 1 when a job failed, with 75 when there is more to do."""
    if args.amp is None:
        args.amp = has_gpu()
    for job in every_job(args):
        refuse_other_settings(job)
        if args.retry_failed:
            job.failure.unlink(missing_ok=True)
    logs = args.work_dir / "logs"
    Runner(lambda: every_job(args), logs, args.parallel, args.budget).run()
    jobs = every_job(args)
    failed = [job.name for job in jobs if job.failure.exists()]
    done = sum(job.product.exists() for job in jobs)
    print(f"{done} of {len(jobs)} known jobs are done, {len(failed)} failed")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}. {logs} says why; --retry-failed tries again")
    if done < len(jobs):
        sys.exit(os.EX_TEMPFAIL)


def pictures(args: argparse.Namespace) -> None:
    """See transfer_pictures."""
    import transfer_pictures

    transfer_pictures.pictures(args)


def pack(args: argparse.Namespace) -> None:
    """See transfer_pack."""
    import transfer_pack

    transfer_pack.pack(args)


def command_line() -> argparse.ArgumentParser:
    """The four verbs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for add in (add_pictures, add_pack, add_run, add_report):
        add(verbs)
    return parser


Verbs = argparse._SubParsersAction


def add_pictures(verbs: "Verbs[argparse.ArgumentParser]") -> None:
    """Its options."""
    parser = verbs.add_parser("pictures", help="those of docs/results.md, from your copies of COCO and VOC")
    parser.add_argument("--coco", type=Path, required=True, help="folder of val2017's pictures")
    parser.add_argument("--voc", type=Path, required=True, help="VOCdevkit/VOC2012")
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(verb=pictures)


def add_pack(verbs: "Verbs[argparse.ArgumentParser]") -> None:
    """Its options."""
    parser = verbs.add_parser("pack", help="shrink the pictures and mine the pool")
    parser.add_argument("pool", type=Path, help="folder of unlabelled photographs")
    parser.add_argument(
        "--train", type=Path, required=True, help="to fine-tune on: a COCO json, a VOC folder or list"
    )
    parser.add_argument("--val", type=Path, help="to measure AP on, likewise [default: half of --train]")
    parser.add_argument("--images", type=Path, help="of the labels, where they are not beside them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--ablate", action="store_true", help="also the datasets of the ablations: twice the size"
    )
    parser.add_argument("--quality", type=int, default=85, help="of the shrunk JPEGs")
    parser.add_argument(
        "--clusters", type=int, help="clusters that DETR's class branch learns [default: none]"
    )
    parser.add_argument(
        "--percent", type=int, nargs="+", default=[10], help="parts of the labels to fine-tune on, too"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of each part: as many as `run` gets")
    parser.set_defaults(verb=pack)


def add_run(verbs: "Verbs[argparse.ArgumentParser]") -> None:
    """Its options."""
    parser = verbs.add_parser("run", help="pretrain and fine-tune until done, or the budget is spent")
    parser.add_argument("pack", type=Path)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--detectors", nargs="+", default=list(AT_320_PX), choices=list(RECIPES))
    parser.add_argument("--schedules", nargs="+", default=["short", "long"])
    parser.add_argument("--fractions", nargs="+", type=int, default=FRACTIONS)
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=(*ARMS, NO_CLASS_BRANCH),
        help=f"[default: {' '.join(ARMS)}]",
    )  # fmt: skip
    parser.add_argument(
        "--backbone-weights", type=Path, help="that all arms begin from, e.g. of aligndet pretrain-backbone"
    )
    parser.add_argument("--pretrain-options", nargs="*", default=[], help="key=value changes to pretraining")
    parser.add_argument(
        "--rates", nargs="+", type=float,
        help="learning rates to choose from, not the recipe's; one: no choice",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each arm")
    parser.add_argument("--image-size", type=int, default=LONG_SIDE, help="longer side in fine-tuning, in px")
    parser.add_argument("--workers", type=int, default=3, help="processes that load images, of each job")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="compute in bfloat16 [default: where there is a GPU; on CPUs without instructions for it it is slow]",
    )
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds after which nothing is started"
    )
    parser.add_argument("--pretrain-epochs", type=int, help="epochs of pretraining, not the recipe's")
    parser.add_argument("--pretrain-batch", type=int, help="images a step of pretraining, not the recipe's")
    parser.add_argument(
        "--ablate", nargs="*", choices=list(ABLATIONS), metavar="NAME",
        help=f"pretrain and fine-tune these too: {', '.join(ABLATIONS)}; without a name: all",
    )  # fmt: skip
    parser.add_argument(
        "--retry-failed", action="store_true", help="start jobs again that ended with an error"
    )
    parser.set_defaults(verb=run)


def add_report(verbs: "Verbs[argparse.ArgumentParser]") -> None:
    """Its options."""
    parser = verbs.add_parser("report", help="the table")
    parser.add_argument("results", type=Path, nargs="+", help="work folders of `run`, or files of --json")
    parser.add_argument("--out", type=Path, help="page that gets the table, between its two markers")
    parser.add_argument("--section", default="transfer", help="name in the page's two markers")
    parser.add_argument("--json", type=Path, help="file for the figures of every run")
    parser.add_argument("--svg", type=Path, help="file for the learning curves")
    parser.set_defaults(verb=report)


def main() -> None:
    """See the module's docstring."""
    arguments = command_line().parse_args()
    arguments.verb(arguments)


if __name__ == "__main__":
    main()
