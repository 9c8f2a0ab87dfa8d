"""torch.compile, for the parts whose settings ask for it."""

import os
import shlex
import shutil
import sysconfig
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proposals.errors import AlignDetError

# The default views on a canvas of multiples of 128 have some forty shapes.
_FORMS = 256


def compile_backbone(backbone: nn.Module) -> None:
    """Once for every shape of a batch, with gradients on (student) and off (teacher)."""
    limits: Any = import_module("torch._dynamo.config")
    # Beyond its limit torch goes on uncompiled, and says so in a line of its log; the limit is 8.
    limits.cache_size_limit = max(limits.cache_size_limit, _FORMS)
    backbone.compile(dynamic=False)


def require_compiler(setting: str) -> None:
    """Raise AlignDetError, naming ``setting``, where torch.compile would not find the compiler that it runs.

    For a CPU it is C++'s, a command in ``CXX``; for a GPU, where Triton compiles a launcher, C's, a path in ``CC``,
    with Python's headers.
    """
    if torch.cuda.is_available():
        _require(setting, "CC", (os.environ["CC"],) if "CC" in os.environ else ("gcc", "clang"))
        if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
            raise AlignDetError(
                f"{setting}=True compiles code, and Python's headers are missing: install them (apt install "
                "python3-dev), or leave the setting out"
            )
    elif "TORCH_INDUCTOR_INSTALL_GXX" not in os.environ:
        _require(setting, "CXX", tuple(shlex.split(os.environ.get("CXX", "g++"))[:1]))


def _require(setting: str, variable: str, names: tuple[str, ...]) -> None:
    if not any(map(shutil.which, names)):
        raise AlignDetError(
            f"{setting}=True compiles code, and there is no {' or '.join(names)}: install it (apt install "
            f"build-essential), name another one in {variable}, or leave the setting out"
        )
