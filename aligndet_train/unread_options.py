"""``--cfg-options`` that the verb they are given to would not read."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from proposals.errors import AlignDetError

_FILES = r"(\.\w+)*\.(ann_file|data_root|data_prefix|metainfo|indices)"
_NOTHING = "nothing here reads it"
# By the beginning of an option: what to write in its place, or why there is nothing.
_OF_BOTH = {
    r"val_dataloader\.(num_workers|persistent_workers)": "use --workers",
    r"val_dataloader\.dataset" + _FILES: "use --val and --val-images",
    r"test_pipeline": "name the dataset's, val_dataloader.dataset.pipeline",
    r"test_dataloader": "name val_dataloader",
    r"(val|test)_evaluator": "COCO's AP of boxes is what is measured",
    r"work_dir": "use --work-dir",
    r"model(\.roi_head)?\.bbox_head(\.\d+)?\.num_classes": "the labels have the classes",
    r"(tta_model|tta_pipeline)": _NOTHING,
    r"(pretrain|pretrain_model)": "it is of `aligndet pretrain`",
}
_INSTEAD: Mapping[str, Mapping[str, str]] = {
    "pretrain": {
        r"optim_wrapper\.optimizer": "use pretrain.optimizer",
        r"optim_wrapper\.clip_grad": "use pretrain.clip_grad",
        r"train_dataloader\.batch_size": "use pretrain.batch_size",
        r"train_cfg\.max_epochs": "use pretrain.epochs",
        r"train_cfg\.max_iters": "use pretrain.iterations",
        r"param_scheduler": "use pretrain.milestones",
        r"randomness\.seed": "use pretrain.seed",
        r"load_from": "use --backbone-weights",
        # Anything else is mmengine's Runner's, which does not pretrain.
        r"(?!(model|pretrain|data_preprocessor)(\.|$)).*": "it reads model, pretrain and data_preprocessor alone",
    },
    "finetune": {
        **_OF_BOTH,
        r"randomness\.seed": "use --seed",
        r"train_dataloader\.(num_workers|persistent_workers)": "use --workers",
        r"train_dataloader\.dataset" + _FILES: "use --train and --train-images",
        r"train_pipeline": "name the dataset's, train_dataloader.dataset.pipeline",
        r"train_cfg\.val_interval": "use --eval-interval",
        r"train_cfg\.(val_begin|dynamic_intervals)": "every --eval-interval epochs are measured",
        r"default_hooks\.checkpoint\.(interval|by_epoch|save_begin)": "an epoch is what a kill may cost: each is kept",
        r"default_hooks\.checkpoint\.out_dir": "checkpoints are in --work-dir",
        r"auto_scale_lr\.enable": "the rate is always scaled; --lr is taken as it is",
        r"launcher": "use --launcher",
        r"resume": "the same command goes on where it was stopped",
    },
    # What was of use in training may be said here, too: commands are copied.
    "evaluate": _OF_BOTH,
}


def require_read(options: Mapping[str, Any], verb: str) -> None:
    """Raise AlignDetError for the first of ``options`` that ``verb`` (pretrain, finetune, evaluate) does not go by.

    options: values by dotted names; dictionaries among the values are looked into.
    """
    for option in _names(options):
        for pattern, instead in _INSTEAD[verb].items():
            if re.match(rf"{pattern}(\.|$)", option):
                raise AlignDetError(f"--cfg-options {option}: `aligndet {verb}` does not read it: {instead}")


def _names(options: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    for name, value in options.items():
        yield f"{inside}{name}"
        if isinstance(value, Mapping):
            yield from _names(value, f"{inside}{name}.")
