"""Around a step of the image-domain stage: its schedule, the collapse monitor, k-NN accuracy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from aligndet_train.distributed import any_rank, unwrapped
from aligndet_train.image_domain.collapse import CollapseMonitor
from aligndet_train.image_domain.knn import LabelledCrops, knn_figures
from aligndet_train.image_domain.model import ImageDomainModel
from aligndet_train.monitoring.metrics import lines_before
from aligndet_train.schedules import Schedule
from aligndet_train.step_seed import seed_step
from proposals.dataset.files import write_atomically
from proposals.errors import AlignDetError

# Key of a parameter group whose rate does not follow the schedule.
FIXED_RATE = "fixed_rate"
KNN_LOG = "knn.jsonl"


def _plain(runner: Runner) -> ImageDomainModel:
    model: ImageDomainModel = unwrapped(runner.model)
    return model


class ScheduleHook(Hook):
    """What is a function of the step: seed, learning rate, what the method does after it.

    learning_rate: [steps] factors on the initial rates.
    """

    # Before mmengine's RuntimeInfoHook, which logs the learning rate.
    priority = "HIGHEST"

    def __init__(self, seed: int, learning_rate: Schedule) -> None:
        self.seed, self.learning_rate = seed, learning_rate

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed torch for this step and rank (stochastic depth draws from it), set the learning rate."""
        seed_step(self.seed, runner.iter)
        for group in runner.optim_wrapper.optimizer.param_groups:
            factor = 1.0 if group[FIXED_RATE] else float(self.learning_rate[runner.iter])
            group["lr"] = group["initial_lr"] * factor

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Let the method move what follows the weights, before anything is saved or measured."""
        _plain(runner).after_step(runner.iter)


class CollapseHook(Hook):
    """Warn in the log when the output has collapsed, once for each time it does. interval: steps between looks.

    A run that goes on is watched anew: nothing is said before it has done a window of steps.
    """

    def __init__(self, monitor: CollapseMonitor, interval: int) -> None:
        self.monitor, self.interval = monitor, interval
        self._warned = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Take in the step; look when it is time."""
        self.monitor.watch((outputs or {})["output_std"])
        if (runner.iter + 1) % self.interval == 0:
            self._look(runner)

    def after_train(self, runner: Runner) -> None:
        """Look once more: the end may come before it is time."""
        self._look(runner)

    def _look(self, runner: Runner) -> None:
        mean = self.monitor.verdict()
        if mean is not None and not self._warned:
            runner.logger.warning(
                f"collapse: the output's deviation is {mean:.5f}, below {self.monitor.limit:.5f}: the backbone gives "
                "every image nearly the same output. A young run may recover; else lower the learning rate, take a "
                "larger batch, or check that the images are not all alike"
            )
        self._warned = mean is not None


class KnnHook(Hook):
    """Append k-NN accuracy, what chance gives, and which pictures it was measured on, to WORK_DIR/knn.jsonl.

    At step 0, every ``interval`` steps (None: never) and at the end; not when the run is stopped before that, which
    ends a measurement. Pictures that cannot be read are an error at step 0, a warning later.
    """

    # After the checkpoint: measuring takes long.
    priority = "LOWEST"

    def __init__(self, labelled: LabelledCrops, folder: Path, interval: int | None) -> None:
        self.labelled, self.path, self.interval = labelled, folder / KNN_LOG, interval
        self._pictures = labelled.fingerprint
        self._measured: set[int] = set()

    def before_train(self, runner: Runner) -> None:
        """Drop what a killed run measured beyond the checkpoint; measure that where it was killed before."""
        if is_main_process():
            self._take_over(runner.iter)
        runner.logger.info(f"k-NN accuracy is measured on {self.labelled.summary}")
        if self._due(runner.iter):
            self._of_run(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Measure when it is time."""
        if self._due(runner.iter + 1):
            self._of_run(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Measure the end."""
        if runner.iter >= runner.max_iters:
            self._of_run(runner, runner.iter)

    def finish(self, model: Callable[[], ImageDomainModel], step: int) -> None:
        """Measure the end of a complete run, if it was killed between its last checkpoint and this."""
        if is_main_process():
            self._take_over(step)
        if self._wanted(step):
            self._measure(model(), step, print_log)

    def _take_over(self, step: int) -> None:
        """Keep what was measured up to ``step``, and know what of it was on these pictures."""
        kept = lines_before(self.path, step) if step else []
        records = [json.loads(line) for line in kept]
        self._measured = {record["step"] for record in records if record.get("pictures") == self._pictures}
        write_atomically(self.path, "".join(kept).encode())

    def _due(self, step: int) -> bool:
        return step == 0 or (self.interval is not None and step % self.interval == 0)

    def _of_run(self, runner: Runner, step: int) -> None:
        if not self._wanted(step):
            return
        loop: Any = runner.train_loop
        try:
            self._measure(_plain(runner), step, runner.logger.info, lambda: loop.asked_to_stop)
        except AlignDetError as error:
            if step == 0:
                raise
            runner.logger.warning(f"k-NN accuracy at step {step} was not measured: {error}")

    def _wanted(self, step: int) -> bool:
        """Whether rank 0, which alone has read the log, has no measurement of ``step``: the same on every rank."""
        return any_rank(is_main_process() and step not in self._measured)

    def _measure(
        self,
        model: ImageDomainModel,
        step: int,
        say: Callable[[str], None],
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        features = self.labelled.features(model, give_up)
        self._measured.add(step)
        if not is_main_process():
            return
        accuracy, chance = knn_figures(features, self.labelled.labels, self.labelled.groups)
        say(
            f"k-NN accuracy at step {step}: {100 * accuracy:.2f} % of {len(self.labelled):,} "
            f"(with shuffled labels: {100 * chance:.2f} %)"
        )
        with self.path.open("a") as file:
            figures = {
                "step": step,
                "knn_accuracy": round(accuracy, 5),
                "knn_chance": round(chance, 5),
                "pictures": self._pictures,
            }
            file.write(json.dumps(figures) + "\n")
