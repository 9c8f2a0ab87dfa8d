"""``--cfg-options`` that fine-tuning or evaluation would not read."""

import re
from collections.abc import Iterable

from proposals.errors import AlignDetError

_FILES = r"(\.\w+)*\.(ann_file|data_root|data_prefix|metainfo)"
_NOTHING = "nothing here reads it"
# By the beginning of an option: what to write in its place, or why there is nothing.
_INSTEAD = {
    r"randomness\.seed": "use --seed",
    r"(train|val)_dataloader\.(num_workers|persistent_workers)": "use --workers",
    r"train_dataloader\.dataset" + _FILES: "use --train and --train-images",
    r"val_dataloader\.dataset" + _FILES: "use --val and --val-images",
    r"train_cfg\.val_interval": "use --eval-interval",
    r"train_pipeline": "name the dataset's, train_dataloader.dataset.pipeline",
    r"test_pipeline": "name the dataset's, val_dataloader.dataset.pipeline",
    r"test_dataloader": "name val_dataloader",
    r"(val|test)_evaluator": "COCO's AP of boxes is what is measured",
    r"default_hooks\.checkpoint\.(interval|by_epoch)": "an epoch is what a kill may cost: each is kept",
    r"auto_scale_lr\.enable": "the rate is always scaled; --lr is taken as it is",
    r"work_dir": "use --work-dir",
    r"launcher": "use --launcher",
    r"resume": "the same command goes on where it was stopped",
    r"(tta_model|tta_pipeline)": _NOTHING,
    r"(pretrain|pretrain_model)": "it is of `aligndet pretrain`",
}
_OF_TRAINING = (
    r"(train_dataloader|train_cfg|optim_wrapper|param_scheduler|auto_scale_lr|randomness|load_from)"
)


def require_read(options: Iterable[str], verb: str) -> None:
    """Raise AlignDetError for the first of ``options``, dotted names, that ``verb`` (finetune, evaluate) overwrites."""
    of_training = {_OF_TRAINING: _NOTHING} if verb == "evaluate" else {}
    for option in options:
        for pattern, instead in (_INSTEAD | of_training).items():
            if re.match(rf"{pattern}(\.|$)", option):
                raise AlignDetError(f"--cfg-options {option}: `aligndet {verb}` does not read it: {instead}")
