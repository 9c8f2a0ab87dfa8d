"""Detector configs that cannot run code: JSON and YAML files in which every class is one that is registered.

A mmengine config in Python is a program. Its JSON and YAML forms are no safe harbour as mmengine reads them: YAML is
loaded with the loader that builds any object, ``_base_`` may name a Python file, ``custom_imports`` imports, and a
``type`` that no registry knows is imported by its path and called, or, as mmcv's NMS, evaluated. Here files are plain
data, and none of that is accepted.
"""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import mmengine.registry
import yaml
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, Registry

from proposals.errors import AlignDetError

SUFFIXES = (".json", ".yaml", ".yml")
SCOPES = ("mmdet", "mmengine", "mmcv")
# Where mmengine and mmdet look a name up in a registry.
_NAMING = ("type", "constructor")
# Of mmcv.ops, which NMS and RoI extractors look up by name without a registry.
OPS = frozenset({"nms", "soft_nms", "nms_match", "RoIAlign", "RoIPool", "SimpleRoIAlign"})
# Settings whose type is a word that mmdet compares, or looks up in a table of its own: Cascade RPN's, and FPG's.
_ADAPTIONS, _TRANSITIONS = (
    frozenset({"offset", "dilation"}),
    frozenset({"conv", "interpolation_conv", "last_conv"}),
)
_WORDS = {"adapt_cfg": _ADAPTIONS} | dict.fromkeys(
    (
        *("same_up_trans", "same_down_trans", "across_lateral_trans", "across_down_trans", "across_up_trans"),
        *("across_skip_trans", "output_trans"),
    ),
    _TRANSITIONS,
)
# What the configs that ship with us import.
_OURS = "aligndet_train.backbones"
# Registered, and they evaluate their settings as Python.
_EVALUATING = frozenset({"RFSearchHook", "CameraMotionCompensation"})


def is_plain(path: Path) -> bool:
    """Whether ``path`` names a JSON or YAML file."""
    return path.suffix.lower() in SUFFIXES


def is_config(name: str) -> bool:
    """Whether ``name``, where a name or a file may be given, is that of a config file."""
    return name.endswith((".py", *SUFFIXES))


def refuse_python(config: Path | None, refused: bool) -> None:
    """Raise AlignDetError when Python configs are ``refused`` and ``config`` is a file of another kind than ours."""
    if refused and config is not None and not is_plain(config):
        raise AlignDetError(
            f"{config} is a Python config, whose code would be run, and --no-python-config refuses that. Give "
            f"--detector NAME, or a config in {', '.join(SUFFIXES)}: where the code is trusted, mmengine's "
            "Config.fromfile(FILE.py).dump('FILE.json') makes one"
        )


def read_plain(path: Path) -> Config:
    """The config in a JSON or YAML file. Raises AlignDetError when it cannot be read, or could run code."""
    try:
        content = _parse(path)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AlignDetError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise AlignDetError(f"{path} is no config: it must hold named settings, `model` among them")
    for name in ("_base_", "custom_imports"):
        if content.get(name) and not _is_ours(content[name]):
            raise AlignDetError(
                f"{path} has {name}, which brings in other files' code. Write it as one file without: mmengine's "
                "Config.fromfile(FILE.py).dump('FILE.json') does, but for imports"
            )
    content.pop("custom_imports", None)
    require_registered(content, str(path))
    try:
        return Config(_with_tuples(content), filename=str(path))
    except KeyError as error:
        raise AlignDetError(f"{path} has a setting that mmengine reserves: {error.args[0]}") from error


def require_registered(config: Any, source: str) -> None:
    """Raise AlignDetError when ``config``, plain data, names anything but registered classes; ``source`` has it."""
    known: set[str] | None = None
    for place, key, value in _settings(config):
        if key == "_scope_" or key == "default_scope":
            if value not in (None, *SCOPES):
                _refuse(source, f"the scope {value!r}")
        elif key in _NAMING and value is not None and not _is_word(place, value):
            known = known or _registered()
            if not isinstance(value, str) or not _is_known(value, known):
                _refuse(source, f"{key} {value!r}")
        elif isinstance(value, str) and value.endswith(".py"):
            # A distilling detector would read its teacher's config.
            _refuse(source, f"the file {value!r}")


def _is_ours(imports: Any) -> bool:
    names = imports.get("imports") if isinstance(imports, dict) else imports
    return names == _OURS or (isinstance(names, list) and all(name == _OURS for name in names))


def _parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, Loader=_DataLoader)


class _DataLoader(yaml.SafeLoader):
    """Plain data, and no alias: nested ones stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name): write the value out")
        return super().compose_node(parent, index)


def _settings(config: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(name of the dictionary that it is in, its name, its value) of every setting."""
    waiting = [("", config)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            yield from ((place, *item) for item in value.items())
            waiting += value.items()
        elif isinstance(value, (list, tuple)):
            waiting += ((place, item) for item in value)


def every_registry() -> list[Registry]:
    """mmengine's, and those of all libraries that were imported."""
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    return [registry for root in roots for registry in (root, *root.children.values())]


def _registered() -> set[str]:
    from mmdet.utils import register_all_modules

    import_module(_OURS)
    register_all_modules(init_default_scope=False)
    names = {(r.scope, name) for r in every_registry() for name in r.module_dict if name not in _EVALUATING}
    return {name for _, name in names} | {f"{scope}.{name}" for scope, name in names} | OPS


def _is_word(place: Any, value: Any) -> bool:
    return isinstance(value, str) and value in _WORDS.get(place, ())


def _is_known(name: str, known: set[str]) -> bool:
    scope, dot, rest = name.partition(".")
    return (rest if dot and scope in SCOPES else name) in known


def _with_tuples(value: Any, inside: bool = False) -> Any:
    """Lists of numbers as tuples in the settings of transforms, which accept nothing else; neither format has them."""
    if isinstance(value, dict):
        name = str(value.get("type", "")).rpartition(".")[2]
        inside = inside or any(name in r.module_dict for r in (TRANSFORMS, *TRANSFORMS.children.values()))
        return {key: _with_tuples(item, inside) for key, item in value.items()}
    if isinstance(value, list):
        items = [_with_tuples(item, inside) for item in value]
        numbers = bool(items) and all(isinstance(item, int | float) for item in items)
        return tuple(items) if inside and numbers else items
    return value


def _refuse(source: str, what: str) -> None:
    raise AlignDetError(
        f"{source} asks for {what}, which is no registered class of mmdet, mmengine or mmcv: to build it could run any "
        "code. Use a class that is registered, or, if you trust the author, a Python config"
    )
