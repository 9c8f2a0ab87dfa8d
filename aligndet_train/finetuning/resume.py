"""Which checkpoint a fine-tuning run goes on from, and whether the folder's run is the one that is asked for."""

import json
from pathlib import Path
from typing import Any

from aligndet_train.backbones.files import read_file
from aligndet_train.checkpoint import identity_difference
from proposals.errors import AlignDetError

RUN = "run.json"
# What must be equal for a run to be resumed,
_IDENTITY = (
    "config",
    "settings",
    "train",
    "val",
    "weights",
    "backbone_weights",
    "classes",
    "options",
    "global_batch",
)
# files by their content alone, wherever they lie now,
_WHERE_IT_LIES = ("train.file:", "val.file:", "weights.file:", "backbone_weights.file:")
# and but for these options,
_FREE_TO_CHANGE = ("workers", "eval_interval", "launcher", "channels_last")
# and where the folder says the batch of all ranks (older ones do not), that of one.
_OF_ONE_RANK = ("batch_size",)


def last_checkpoint(work_dir: Path) -> Path | None:
    """What to go on from. mmengine writes its whole path down, which is wrong once the folder has moved."""
    note = work_dir / "last_checkpoint"
    if not note.is_file():
        return None
    name = Path(note.read_text().strip()).name
    if not name:  # mmengine empties it before it writes, once the checkpoint itself is whole
        return _newest_epoch(work_dir)
    path = work_dir / name
    if not path.is_file():
        raise AlignDetError(
            f"{note} names {path.name}, which is gone: the run cannot go on. Choose a new --work-dir, or write the "
            "name of a checkpoint that is there into it"
        )
    return path


def require_whole(checkpoint: Path) -> None:
    """Raise AlignDetError, with the way on, when ``checkpoint`` is damaged: mmengine writes it in place."""
    try:
        read_file(checkpoint)
    except AlignDetError as error:
        before = _newest_epoch(checkpoint.parent, but=checkpoint)
        note = checkpoint.parent / "last_checkpoint"
        way = "Choose a new --work-dir"
        if before is not None:
            way = f"To go on from the one before, write {before.name} into {note}"
        raise AlignDetError(f"the run cannot go on from its last checkpoint: {error}. {way}") from error


def resumed(work_dir: Path, run: dict[str, Any]) -> dict[str, Any]:
    """``run`` with the rates it began with, which mmengine restores. Raises AlignDetError when it is another run."""
    path = work_dir / RUN
    if not path.is_file():
        return run
    saved = json.loads(path.read_text())
    names = [name for name in _IDENTITY if name in saved]
    before, now = ({name: content[name] for name in names} for content in (saved, run))
    options = _FREE_TO_CHANGE + (_OF_ONE_RANK if "global_batch" in saved else ())
    free = (*_WHERE_IT_LIES, *(f"options.{name}:" for name in options))
    different = [line for line in identity_difference(before, now) if not line.startswith(free)]
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise AlignDetError(f"{work_dir} holds another run:{lines}\nChoose a new --work-dir")
    return {**run, **{name: saved[name] for name in ("lr", "weight_decay") if name in saved}}


def _newest_epoch(work_dir: Path, but: Path | None = None) -> Path | None:
    found = (path for path in work_dir.glob("epoch_*.pth") if path != but)
    return max(found, key=lambda path: int(path.stem[6:]), default=None)
