"""The names that a config's ``type`` may have for one class: ``RetinaHead``, ``mmdet.RetinaHead``, or an import path.

The last is what mmengine makes of a config in pure Python (``type=RetinaHead``) when it is written as plain data. Built
alike, compared as text they differ.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from aligndet_train.plain_config import OPS, SCOPES, every_registry

_OPS = "mmcv.ops."


def class_name(kind: Any) -> str:
    """The bare name of the class that a ``type`` names: a class, or its name with or without scope or module."""
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def with_registered_names(settings: Any) -> Any:
    """Settings, plain data, with import paths of registered classes replaced by the names they are registered under.

    Only such names may stand in a checkpoint, and mmcv finds its RoI layers and NMS by them. Other names stay.
    """
    if isinstance(settings, dict):
        return {
            key: _registered_name(value) if key == "type" else with_registered_names(value)
            for key, value in settings.items()
        }
    if isinstance(settings, (list, tuple)):
        return type(settings)(with_registered_names(item) for item in settings)
    return settings


def _registered_name(kind: Any) -> Any:
    if not isinstance(kind, str) or "." not in kind:
        return kind
    named = _imported(kind)
    found = [(scope, name) for scope, name, known in _registrations() if known is named and named is not None]
    if (*kind.split(".", 1),) in found:
        return kind  # a scope and a name already, if also an import path
    if not found:
        return class_name(kind) if kind.startswith(_OPS) and class_name(kind) in OPS else kind
    # Under its own name if it has that: some have several.
    scope, name = next(((scope, name) for scope, name in found if name == class_name(kind)), found[0])
    return name if scope in SCOPES else f"{scope}.{name}"


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _registrations() -> Iterator[tuple[str, str, Any]]:
    for registry in every_registry():
        yield from ((registry.scope, name, known) for name, known in registry.module_dict.items())
