"""A detector's config that comes with a checkpoint and not from the user: its names must be of registered classes.

mmengine takes a ``type`` with dots for the path of any importable object and calls it: ``os.system`` would do.
"""

from importlib import import_module
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS

from proposals.errors import AlignDetError

_SCOPES = ("mmdet", "mmengine", "mmcv")


def require_registered(config: Any) -> None:
    """Raise AlignDetError when ``config``, plain data, names an object by its import path, or a Python file."""
    import_module("mmdet.models")
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            _require_name(value.get("type"))
            if value.get("_scope_", "mmdet") not in _SCOPES:
                _refuse(f"the scope {value['_scope_']!r}")
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, str) and value.endswith(".py"):
            _refuse(f"the file {value!r}")


def _require_name(name: Any) -> None:
    if not isinstance(name, str) or "." not in name:
        return
    scope, _, rest = name.partition(".")
    known = [registry for start in (MODELS, TASK_UTILS) for registry in (start, start.parent) if registry]
    if scope not in _SCOPES or not any(rest in registry.module_dict for registry in known):
        _refuse(f"the type {name!r}")


def _refuse(what: str) -> None:
    raise AlignDetError(
        f"the detector's config in this checkpoint asks for {what}, which is no registered class of mmdet: to build it "
        "could run any code. Use a checkpoint that `aligndet pretrain` wrote"
    )
