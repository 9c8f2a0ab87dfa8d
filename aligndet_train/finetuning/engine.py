"""mmengine's Runner, as fine-tuning and evaluation build it."""

from itertools import count
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

_RUNS = count()


def new_runner(config: Config) -> Runner:
    """A Runner whose logs are its own, within mmdet's scope: see DefaultScope."""
    # mmengine writes the config with every checkpoint, and yapf takes a second to lay it out.
    object.__setattr__(config, "_format_python_code", False)
    if "experiment_name" not in config:
        # mmengine keeps logs by this name and the second: the next run of a process gets its own.
        config.experiment_name = f"{Path(config.filename or 'config').stem}_{next(_RUNS)}"
    return Runner.from_cfg(config)
