"""mmengine's Runner, as fine-tuning and evaluation build it."""

from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from aligndet_train.distributed import unwrapped
from aligndet_train.initial_weights import load_initial_weights

_RUNS = count()


def new_runner(config: Config) -> Runner:
    """A Runner whose logs are its own, within mmdet's scope: see DefaultScope."""
    # mmengine writes the config with every checkpoint, and yapf takes a second to lay it out.
    object.__setattr__(config, "_format_python_code", False)
    if "experiment_name" not in config:
        # mmengine keeps logs by this name and the second: the next run of a process gets its own.
        config.experiment_name = f"{Path(config.filename or 'config').stem}_{next(_RUNS)}"
    runner = Runner.from_cfg(config)
    model = unwrapped(runner.model)
    if hasattr(model, "init_weights") and hasattr(getattr(model, "backbone", None), "init_weights"):
        _start_alone(model.backbone)
        _start_filled(runner, model)
    return runner


def _start_filled(runner: Runner, model: Any) -> None:
    """Let weights that the config names fill the backbone, or no run begin: mmengine passes over what does not fit."""
    init_weights = model.init_weights

    def init_filled() -> None:
        for line in load_initial_weights(model, model.backbone, init_weights):
            runner.logger.warning(line)

    model.init_weights = init_filled


def _start_alone(backbone: Any) -> None:
    """Leave torch's generator as it was once the backbone is initialised, of which weights may have spared parts.

    So neck and heads begin alike in all runs of a seed, wherever their backbones' weights come from.
    """
    init_weights = backbone.init_weights

    def init_alone() -> None:
        with torch.random.fork_rng(
            devices={value.device for value in backbone.parameters() if value.is_cuda}
        ):
            init_weights()

    backbone.init_weights = init_alone
