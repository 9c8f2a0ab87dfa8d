"""What happens around a step besides the step itself, as mmengine hooks."""

import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook, IterTimerHook
from mmengine.runner import Runner

from aligndet_train.box_domain import BoxDomainPretrainer
from aligndet_train.checkpoint import save_checkpoint
from aligndet_train.distributed import sum_over_hosts, unwrapped
from aligndet_train.monitoring.nonfinite import ADVICE, require_finite
from aligndet_train.schedules import Schedule
from aligndet_train.step_seed import seed_step
from proposals.dataset.files import remove_leftovers


def _pretrainer(runner: Runner) -> BoxDomainPretrainer:
    pretrainer: BoxDomainPretrainer = unwrapped(runner.model)
    return pretrainer


class AnnounceHook(Hook):
    """Say what is about to run, and let the log speak from here on. lines: one log record each."""

    priority = "VERY_HIGH"

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def before_train(self, runner: Runner) -> None:
        """Lower the log level to INFO and log the lines."""
        runner.logger.setLevel("INFO")
        for handler in runner.logger.handlers:
            handler.setLevel("INFO")
        for line in self.lines:
            runner.logger.info(line)


class StepHook(Hook):
    """Seed, learning rate and teacher momentum: all three functions of the step.

    learning_rate: [steps] factors on every parameter group's initial rate. momentum: [steps].
    """

    # Before mmengine's RuntimeInfoHook, which logs the learning rate.
    priority = "HIGHEST"

    def __init__(self, seed: int, learning_rate: Schedule, momentum: Schedule) -> None:
        self.seed, self.learning_rate, self.momentum = seed, learning_rate, momentum

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed torch for this step and rank (mmdet's samplers draw from it), set the learning rate."""
        seed_step(self.seed, runner.iter)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * float(self.learning_rate[runner.iter])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Move the teacher, then bring the step's figures to the host, in place: the one wait for the GPU a step."""
        momentum = float(self.momentum[runner.iter])
        _pretrainer(runner).momentum_step(momentum)
        runner.message_hub.update_scalar("train/teacher_momentum", momentum)
        if outputs:
            wrapper = runner.optim_wrapper
            norm = wrapper.norm
            # Every later hook would fetch each figure by itself.
            figures = torch.stack([*outputs.values(), *([] if norm is None else [norm])]).tolist()
            outputs.update(zip(outputs, figures, strict=False))
            if norm is not None:
                wrapper.message_hub.update_scalar("train/grad_norm", figures[-1])


class ThroughputHook(Hook):
    """Log images a second. images: of one step over all ranks."""

    def __init__(self, images: int) -> None:
        self.images = images
        self._before: float | None = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """From the end of one step to the end of the next."""
        now = time.perf_counter()
        if self._before is not None:
            runner.message_hub.update_scalar("train/images_per_second", self.images / (now - self._before))
        self._before = now


class ClockHook(Hook):
    """Let mmengine's clock of a step start when all hooks are done: else the next step would seem to have waited for
    its images while a checkpoint was written. It must be the last one that is registered.
    """

    priority = "LOWEST"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Start it anew."""
        for hook in runner.hooks:
            if isinstance(hook, IterTimerHook):
                hook.t = time.time()


class BoundedHistoryHook(Hook):
    """Keep no more of each figure than the log averages over; length: of that, in steps.

    mmengine keeps a million values of each and copies them in every step, which after some epochs takes milliseconds.
    """

    priority = "LOWEST"

    def __init__(self, length: int) -> None:
        self.length = length

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Bound those that are new; the optimizer's are in a hub of their own."""
        for hub in (runner.message_hub, runner.optim_wrapper.message_hub):
            for buffer in hub.log_scalars.values():
                buffer.max_length = self.length


class SkippedHook(Hook):
    """Say how many images could not be read and were replaced, every ``interval`` steps in which there were more."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._count, self._told, self._reason = 0, 0, ""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count, and tell when it is time."""
        for sample in data_batch:
            if sample.skipped:
                self._count, self._reason = self._count + 1, sample.skipped
        if (runner.iter + 1) % self.interval == 0:
            self._tell(runner)

    def after_train(self, runner: Runner) -> None:
        """Tell what the interval left out."""
        self._tell(runner)

    def _tell(self, runner: Runner) -> None:
        total = sum_over_hosts(self._count)
        if total > self._told:
            reason = f"; the last here: {self._reason}" if self._reason else ""
            runner.logger.warning(
                f"skipped so far: {total} images, replaced by others of the dataset{reason}"
            )
            self._told = total


class CheckpointHook(Hook):
    """Write last.pth every ``interval`` steps and when training ends or is interrupted, from the main process.

    start: the step this process began at. advice: see NonFiniteHook; weights that are not finite are not saved.
    """

    priority = "VERY_LOW"

    def __init__(
        self, folder: Path, interval: int, identity: dict[str, Any], start: int, advice: str = ADVICE
    ) -> None:
        self.folder, self.interval, self.identity, self.start = folder, interval, identity, start
        self.advice = advice
        self._saved = -1

    def before_train(self, runner: Runner) -> None:
        """Remove what a run left that was killed while it saved."""
        if is_main_process():
            remove_leftovers(self.folder)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save when it is time."""
        if (runner.iter + 1) % self.interval == 0:
            self._save(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Save what the interval left out."""
        self._save(runner, runner.iter)

    def _save(self, runner: Runner, done: int) -> None:
        if done == self._saved:
            return
        # On every rank, as they all must stop: their weights are equal.
        require_finite(runner.model, self.advice)
        self._saved = done
        if is_main_process():
            optimizer = runner.optim_wrapper.optimizer
            sampler = runner.train_dataloader.batch_sampler
            stream = sampler.state_after(done - self.start)
            save_checkpoint(self.folder, _pretrainer(runner), optimizer, done, self.identity, stream)
