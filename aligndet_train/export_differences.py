"""Which options of a mmdet config another library has no counterpart of, and what that changes in the outputs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aligndet_train.detectors.class_names import class_name


@dataclass(frozen=True)
class Rule:
    """What an option of a mmdet config must be for equal outputs, and what is otherwise different.

    option: dotted path in the ``model``. default: mmdet's, where the config is silent. equal: other values that compute
    the same as ``wanted``.
    """

    option: str
    wanted: Any
    default: Any
    consequence: str
    equal: tuple[Any, ...] = ()


def broken(rules: Iterable[Rule], model_config: Mapping[str, Any]) -> list[str]:
    """A sentence for every rule that ``model_config`` breaks. Types are compared by their last part."""
    found = [(rule, option(model_config, rule.option, rule.default)) for rule in rules]
    return [
        f"{rule.option} is {value!r}: {rule.consequence} (equal with {rule.wanted!r})"
        for rule, value in found
        if not any(_same(value, accepted, rule.option) for accepted in (rule.wanted, *rule.equal))
    ]


def option(config: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted ``path``, or ``default``."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def resnet_rules(out_indices: list[int]) -> list[Rule]:
    """Of a plain ResNet with ``out_indices``, whose weights fit whatever these options are."""
    return [
        Rule(
            "backbone.style", "pytorch", "pytorch", "the stride of a bottleneck is on its first convolution"
        ),
        Rule("backbone.strides", [1, 2, 2, 2], [1, 2, 2, 2], "maps have another size"),
        Rule("backbone.dilations", [1, 1, 1, 1], [1, 1, 1, 1], "convolutions sample other points"),
        Rule("backbone.out_indices", out_indices, [0, 1, 2, 3], "other stages of the backbone are used"),
        Rule("backbone.deep_stem", False, False, "the stem has three convolutions"),
        Rule("backbone.avg_down", False, False, "maps are averaged where a plain ResNet strides"),
        Rule("backbone.dcn", None, None, "convolutions are deformable"),
        Rule("backbone.plugins", None, None, "blocks have further layers"),
        Rule("backbone.norm_cfg.type", "BN", "BN", "layers are normalised otherwise", ("SyncBN",)),
        Rule("backbone.norm_cfg.eps", 1e-5, 1e-5, "layers are normalised otherwise"),
    ]


def _same(value: Any, accepted: Any, path: str) -> bool:
    if path.endswith(".type"):
        return class_name(value) == str(accepted)
    if isinstance(value, float) and isinstance(accepted, float):
        return math.isclose(value, accepted, rel_tol=1e-9)
    return bool(value == accepted or (isinstance(value, tuple) and list(value) == accepted))
