"""torch.compile, for the parts whose settings ask for it."""

import os
import shutil
from importlib import import_module
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
    """Raise AlignDetError, naming ``setting``, where torch.compile would not find the C compiler that it runs.

    For a CPU it is C++'s, of ``CXX``; for a GPU, where Triton compiles a launcher, C's, of ``CC``.
    """
    on_gpu = torch.cuda.is_available()
    variable, usual = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++",))
    chosen = os.environ.get(variable)
    names = (chosen,) if chosen else usual
    if not any(map(shutil.which, names)):
        raise AlignDetError(
            f"{setting}=True compiles code, and there is no {' or '.join(names)}: install it (apt install "
            f"build-essential), name another one in {variable}, or leave the setting out"
        )
