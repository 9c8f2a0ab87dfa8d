"""The names that a config's ``type`` may have for one class: ``RetinaHead``, ``mmdet.RetinaHead``, or an import path.

The last is what mmengine makes of a config in pure Python (``type=RetinaHead``) when it is written as plain data. Built
alike, compared as text they differ.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

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
    if kind.startswith(_OPS):
        return class_name(kind)
    named = _imported(kind)
    # Under its own name if it has that: some have several.
    names = [name for name, known in _registrations() if known is named]
    return next((name for name in names if name == class_name(kind)), names[0] if names else kind)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _registrations() -> Iterator[tuple[str, Any]]:
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    for registry in [child for root in roots for child in (root, *root.children.values())]:
        yield from registry.module_dict.items()
