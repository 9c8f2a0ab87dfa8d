"""Checkpoints: written whole or not at all, the previous one kept, loadable with ``weights_only=True``.

Everything random in a step is seeded by the step, so a checkpoint is weights, optimiser state, the step, and the three
integers of the stream (StreamState).
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from aligndet_train.torch_files import load_plain
from proposals.dataset.files import fsync, temporary_beside
from proposals.errors import AlignDetError

FORMAT = 1
LAST = "last.pth"
PREVIOUS = "previous.pth"
_TUPLE = "(tuple)"
INITIAL_WEIGHTS = "initial_weights"
"""Of an identity: sha256 of the files that the backbone begins from, by the option that names each."""
SPEED_SETTINGS = ("channels_last", "compile_backbone", "compile_loss")
"""Of PretrainConfig: they change how fast a run is, so that it may go on with others."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    step: int,
    identity: dict[str, Any],
    stream: Sequence[int] = (),
) -> Path:
    """Write ``folder/last.pth`` atomically; what was there becomes ``previous.pth``.

    step: steps done. identity: plain data saying what run this is (config, dataset); compared on resume.
    stream: a StreamState, where the order of samples goes on.
    """
    state = {
        "format": FORMAT,
        "step": step,
        "stream": list(stream),
        "identity": encoded(identity),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    last = folder / LAST
    with temporary_beside(last, folder / PREVIOUS) as (temporary, spare):
        with disk_blamed(last), temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if last.exists():
            # A hard link first: at no moment is there no last.pth.
            _link_or_copy(last, spare)
            spare.replace(folder / PREVIOUS)
        temporary.replace(last)
    return last


@contextmanager
def disk_blamed(path: Path) -> Iterator[None]:
    """Raise the system's error about ``path`` where it is hidden.

    torch's zip writer fails again when it closes what could not be written; safetensors says the number in words.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _system_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: Exception) -> int | None:
    """The errno behind ``error``, or None."""
    if isinstance(error, SafetensorError):
        said = re.search(r"os error (\d+)", str(error))
        return int(said[1]) if said else None
    cause = error if isinstance(error, OSError) else error.__context__
    return cause.errno if isinstance(cause, OSError) else None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)
        fsync(target)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU: {"step", "stream", "identity" (decoded), "model", "optimizer"}.

    Raises AlignDetError for a missing, damaged or foreign file, and for one holding pickled code.
    """
    if not path.is_file():
        raise AlignDetError(f"no checkpoint at {path}; `aligndet pretrain` writes WORK_DIR/{LAST}")
    try:
        state = load_plain(path)
    except Exception as error:
        raise AlignDetError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): it is damaged, or holds pickled objects, "
            f"which are refused because loading them runs code. To go on from the one before, copy {PREVIOUS} over it"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise AlignDetError(f"{path} is not an aligndet pretraining checkpoint of format {FORMAT}")
    try:
        return _checked(state)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AlignDetError(
            f"{path} is damaged ({type(error).__name__}: {error}). To go on from the one before, copy {PREVIOUS} "
            "over it"
        ) from error


def saved_run(work_dir: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint in ``work_dir`` that the run of ``identity`` continues; None without one.

    Raises AlignDetError when it is another run's, when there is only the one before it, and what load_checkpoint
    raises.
    """
    path = work_dir / LAST
    if not path.exists():
        _require_none_before(work_dir)
        return None
    saved = load_checkpoint(path)
    _require_stage(path, saved["identity"], identity)
    before, now = _of_the_runs(saved["identity"], identity)
    changed = identity_difference(before, now)
    if changed:
        raise AlignDetError(
            f"{path} belongs to another run:\n  "
            + "\n  ".join(changed)
            + f"\n{_reasons(changed)}Use another --work-dir, or --no-resume to overwrite it"
        )
    return saved


def _reasons(changed: Sequence[str]) -> str:
    """What may have changed the settings that no option is called by."""
    names = {line.partition(":")[0].rpartition(".")[2] for line in changed}
    batch = (
        "global_batch is --batch-size times the number of processes: other numbers of them go on with the same "
        "product. "
    )
    data = (
        "The dataset is another one, or was changed or appended to since the run began: the order of its images hangs "
        "on all of them. "
    )
    return (batch if "global_batch" in names else "") + (data if "manifest" in names else "")


def _require_none_before(work_dir: Path) -> None:
    if (work_dir / PREVIOUS).exists():
        raise AlignDetError(
            f"{work_dir} has no {LAST}, but the checkpoint before it, {PREVIOUS}: copy that to {LAST} to go on from "
            "there, or begin anew with --no-resume"
        )


def _require_stage(path: Path, *identities: dict[str, Any]) -> None:
    before, now = ("pretrain-backbone" if "stage" in identity else "pretrain" for identity in identities)
    if before != now:
        raise AlignDetError(
            f"{path} is of a run of `aligndet {before}`, and `aligndet {now}` cannot go on from it: use another "
            "--work-dir"
        )


def _of_the_runs(*identities: dict[str, Any]) -> list[dict[str, Any]]:
    """Two identities without what changes no run: the config's file name, which is for people, settings for speed, and
    where files lie whose content both know. Where one does not, as the file is gone, names have to do."""
    options = [set(identity.get(INITIAL_WEIGHTS, ())) for identity in identities]
    by_content = options[0] == options[1] != set()
    return [_of_the_run(identity, by_content=by_content) for identity in identities]


def _of_the_run(identity: dict[str, Any], *, by_content: bool) -> dict[str, Any]:
    settings = identity.get("pretrain", {})
    kept = {name: value for name, value in settings.items() if name not in SPEED_SETTINGS}
    kept = {**identity, "config": None, "pretrain": kept}
    files = kept.pop(INITIAL_WEIGHTS, None)
    if not by_content:
        return kept
    model = dict(kept["stock_model"])
    for option in files:
        model["backbone"] = _without(model["backbone"], option.split("."))
    return {**kept, "stock_model": model, INITIAL_WEIGHTS: files}


def _without(settings: Any, path: Sequence[str]) -> Any:
    """A copy of ``settings`` without the value that lies at ``path``, names and places in lists."""
    if isinstance(settings, (list, tuple)):
        return [_without(item, path[1:]) if str(i) == path[0] else item for i, item in enumerate(settings)]
    changed = {name: value for name, value in settings.items() if name != path[0]}
    if len(path) > 1:
        changed[path[0]] = _without(settings[path[0]], path[1:])
    return changed


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    model, stream = state["model"], state["stream"]
    named = isinstance(model, Mapping) and all(isinstance(name, str) for name in model)
    if not named or not all(isinstance(value, Tensor) for value in model.values()):
        raise ValueError("its model is no dictionary of tensors")
    if not isinstance(state["optimizer"], Mapping) or not isinstance(state["step"], int):
        raise ValueError("its optimizer or step is none")
    if len(stream) not in (0, 3) or not all(isinstance(number, int) and number >= 0 for number in stream):
        raise ValueError("its place in the stream is none")
    return {**state, "identity": decoded(state["identity"])}


@contextmanager
def as_damage(path: Path) -> Iterator[None]:
    """Turn what torch raises inside, when a state does not fit, into an AlignDetError that blames ``path``."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise AlignDetError(
            f"{path} does not hold the state of this run ({type(error).__name__}): it is damaged or was changed. To go "
            f"on from the one before, copy {PREVIOUS} over it"
        ) from error


def encoded(identity: dict[str, Any]) -> str:
    """JSON that keeps tuples apart from lists: some mmdet classes accept only one of them."""
    return json.dumps(_tagged(identity), sort_keys=True)


def decoded(text: str) -> dict[str, Any]:
    """What ``encoded`` was given. Raises ValueError, TypeError or RecursionError for another text."""
    identity = json.loads(text, object_hook=lambda d: tuple(d[_TUPLE]) if d.keys() == {_TUPLE} else d)
    if not isinstance(identity, dict):
        raise ValueError("its identity is no dictionary")
    return identity


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tagged(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_tagged(item) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    return value


def identity_difference(saved: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: saved -> wanted" for every leaf that differs between two identities."""
    lines = []
    for key in sorted(saved.keys() | wanted.keys()):
        old, new = saved.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += identity_difference(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines
