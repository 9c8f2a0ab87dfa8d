"""Steps, one after the other, until the last one or a request to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from aligndet_train.allocator import keep_freed_memory
from aligndet_train.distributed import any_rank, wrapped
from aligndet_train.hooks import BoundedHistoryHook, ClockHook
from aligndet_train.loader import workers_ended
from aligndet_train.misfits import misfits_blamed
from aligndet_train.resumable import ResumablePlan
from aligndet_train.stream import Sample
from aligndet_train.stream.dataset import readable
from proposals.errors import AlignDetError

# A signal reaches the ranks in different steps; asking in each would keep their hosts in lockstep.
_STEPS_BETWEEN_AGREEMENTS = 4
_RUNS = count()


class TrainingStoppedError(AlignDetError):
    """Training was asked to stop, and stopped at the end of a step with a checkpoint."""

    exit_code = 130


def run_to_the_end(runner: Runner) -> None:
    """Train, and end the loader's processes. Raises TrainingStoppedError when it stopped before the last step."""
    keep_freed_memory()
    with workers_ended(runner.train_dataloader), memory_blamed(), misfits_blamed(runner):
        runner.train()
    if runner.iter < runner.max_iters:
        raise TrainingStoppedError(
            f"stopped at step {runner.iter} of {runner.max_iters}; the same command goes on from there"
        )


@contextmanager
def memory_blamed() -> Iterator[None]:
    """Turn what a lack of memory raises, on the GPU or in a process that decodes, into an AlignDetError with advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise AlignDetError(
            f"the GPU's memory does not hold a step: {str(error).splitlines()[0]} Take fewer images a step "
            "(--batch-size), --amp, or smaller pictures, in a new --work-dir; or end what else runs on it"
        ) from error
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        told = str(error).splitlines()[0].strip(" .")
        raise AlignDetError(
            f"a process that decodes images ended: {told}. Most often the machine, or its shared memory (/dev/shm), "
            "was full: take fewer --workers, or none (--workers 0), and run the same command again"
        ) from error


class StreamTrainLoop(IterBasedTrainLoop):
    """mmengine's loop without its "advance the dataloader": the sampler itself starts at the step."""

    def __init__(self, *args: Any, start_step: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._iter = self._start = start_step
        self._asked = threading.Event()

    @property
    def asked_to_stop(self) -> bool:
        """Whether this process was, see stop_requests: what is not needed for a checkpoint should end soon."""
        return self._asked.is_set()

    def run(self) -> Any:
        """Train from the start step to the last, or to the first request to stop of any rank; returns the model."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        with stop_requests() as self._asked:
            while self._iter < self._max_iters and not self._stopped():
                self.run_iter(self._next_batch())
            self._end()
        return self.runner.model

    def _next_batch(self) -> list[Sample]:
        try:
            return readable(next(self.dataloader_iterator))
        except Exception:
            # The steps before are whole: they need not be done again. Ranks would wait for each other at the end.
            if get_world_size() == 1 and self._iter > self._start:
                self._end()
            raise

    def _end(self) -> None:
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")

    def _stopped(self) -> bool:
        """Ranks stop after the same step, or they would wait for each other: they ask each other now and then."""
        if get_world_size() == 1:
            return self.asked_to_stop
        return self._iter % _STEPS_BETWEEN_AGREEMENTS == 0 and any_rank(self.asked_to_stop)


def step_runner(
    plan: ResumablePlan,
    model: nn.Module,
    loader: "DataLoader[Sample]",
    optim_wrapper: OptimWrapper,
    *,
    hooks: list[Hook],
    seed: int,
    record: dict[str, Any],
    name: str,
) -> Runner:
    """mmengine's Runner from ``plan.start`` to ``plan.steps``, with ``hooks`` in place of most of its own.

    record: what the run was made of, written into the work folder.
    """
    options = plan.options
    return Runner(
        model=wrapped(model),
        work_dir=str(plan.work_dir),
        train_dataloader=loader,
        train_cfg={"type": StreamTrainLoop, "max_iters": plan.steps, "start_step": plan.start},
        optim_wrapper=optim_wrapper,
        default_hooks={
            "sampler_seed": None,
            "param_scheduler": None,
            "checkpoint": None,
            "logger": {"type": "LoggerHook", "interval": options.log_interval},
        },
        custom_hooks=[*hooks, BoundedHistoryHook(options.log_interval), ClockHook()],
        log_processor={"by_epoch": False, "window_size": options.log_interval},
        # mmengine's own INFO is pages of environment and hook lists; ours begins with AnnounceHook.
        log_level="WARNING",
        randomness={"seed": seed},
        launcher=options.launcher,
        default_scope="mmdet",
        # Without yapf, which takes mmengine a second, several times a run.
        cfg=Config(record, format_python_code=False),
        # mmengine keeps logs and visualisers by this name and the second: the next run of a process gets its own.
        experiment_name=f"{name}_{next(_RUNS)}",
    )


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP (the terminal, or its connection, is closed) sets.

    A second Ctrl-C or SIGTERM has its ordinary effect, it kills.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ordinary = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if ordinary[signal.SIGHUP] is signal.SIG_IGN:
        # As nohup wants it.
        del ordinary[signal.SIGHUP]

    def request(number: int, frame: Any) -> None:
        stop.set()
        for each, handler in ordinary.items():
            # A terminal that closes sends it twice: from its shell, and from the kernel.
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else handler)

    for number in ordinary:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in ordinary.items():
            signal.signal(number, handler)
