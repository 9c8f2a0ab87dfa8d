"""Reading weights files of other projects without running what they hold."""

import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from aligndet_train.torch_files import load_plain
from proposals.errors import AlignDetError

# Where trainers keep the tensors, outermost first; of a teacher and its student the teacher is the one to use (DINO).
_CONTAINERS = ("teacher", "state_dict", "model", "model_state_dict", "student", "net")
# Plain data in checkpoints of DINO, PixPro, MAE (argparse) and SimMIM, Swin (yacs, which need not be installed).
_HARMLESS: list[Any] = [Namespace, (OrderedDict, "yacs.config.CfgNode")]


@dataclass(frozen=True)
class WeightsFile:
    """state: every tensor, by the file's own names. inside: the entries it was found in. beside: other entries."""

    path: Path
    state: dict[str, Tensor]
    inside: tuple[str, ...]
    beside: tuple[str, ...]
    content: Mapping[str, Any]


def read_file(path: Path) -> WeightsFile:
    """The tensors of a ``.safetensors`` or a ``torch.save`` file.

    Raises AlignDetError when it is missing, is none of them, has no tensors, holds itself, or holds pickled code: that
    is refused, as unpickling it would run it.
    """
    if not path.is_file():
        raise AlignDetError(f"no weights at {str(path)!r}: give a .safetensors or .pth file")
    content = _load(path)
    if not isinstance(content, Mapping):
        raise AlignDetError(f"{path} holds a {type(content).__name__}, not named tensors")
    inside, beside, state = _tensors(path, content)
    if not state:
        raise AlignDetError(f"{path} holds no tensors; its entries: {', '.join(map(str, content)) or 'none'}")
    return WeightsFile(path, state, inside, beside, content)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return load_plain(path, _HARMLESS)
    except Exception as error:  # a file that is no pickle fails in whatever way its bytes happen to lead to
        refused = _code_in(str(error))
        if not _may_be_weights(path):
            raise AlignDetError(
                f"{path} is not a weights file: it begins like none. An error page, or a Git LFS pointer, in place of "
                "the file that was to be downloaded?"
            ) from error
        if refused:
            raise AlignDetError(
                f"{path} holds pickled code ({refused}), which is refused because loading it would run it. Ask for a "
                "file of tensors alone, or, if you trust it, save its state_dict again with torch.save elsewhere"
            ) from error
        raise AlignDetError(f"{path} is not a weights file: {type(error).__name__}: {error}") from error


def _may_be_weights(path: Path) -> bool:
    """Whether the file begins as torch's archives, pickles of protocol 2 and later, or safetensors do."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return True  # why it cannot be read is told already
    return start.startswith((b"PK\x03\x04", b"\x80")) or start[8:] == b"{"


def _code_in(message: str) -> str:
    """The name of the global that torch's unpickler refused."""
    found = re.search(r"Unsupported (?:global: GLOBAL|class|operand)\s+(\S+)", message)
    return found[1].rstrip(".,") if found else ""


def _tensors(
    path: Path, content: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Tensor]]:
    inside: list[str] = []
    beside: list[str] = []
    entered = {id(content)}
    while (name := _container(content)) is not None:
        beside += ["/".join([*inside, str(other)]) for other in content if other != name]
        inside.append(name)
        content = content[name]
        if id(content) in entered:
            raise AlignDetError(
                f"{path} holds itself in its entry {'/'.join(inside)}, so it has no tensors: it is no weights file"
            )
        entered.add(id(content))
    beside += [
        "/".join([*inside, str(key)]) for key, value in content.items() if not isinstance(value, Tensor)
    ]
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return tuple(inside), tuple(beside), state


def _container(content: Mapping[str, Any]) -> str | None:
    return next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
