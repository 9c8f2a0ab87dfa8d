"""Weights whose detector computed something else than the config that they are loaded into, all shapes being equal."""

import json
from collections.abc import Mapping
from typing import Any

from aligndet_train.backbones.files import WeightsFile
from aligndet_train.backbones.trained_with import detector_model
from aligndet_train.checkpoint import identity_difference
from aligndet_train.detectors.class_names import with_registered_names

# They change no output: of training, of where weights came from, of the labels. Normalisation is looked at elsewhere.
_OF_NO_OUTPUT = frozenset(
    {
        "train_cfg", "test_cfg", "init_cfg", "pretrained", "weights", "frozen_stages", "norm_eval", "with_cp",
        "num_classes", "data_preprocessor", "convert_weights", "requires_grad", "dn_cfg", "_scope_",
    }
)  # fmt: skip
_OF_TRAINING = ("loss_", "drop", "attn_drop", "proj_drop", "center_sampl")
_NAMED = 5


def other_model_warning(file: WeightsFile, model: Mapping[str, Any]) -> str | None:
    """A line that names the settings in which the detector that a weights file says it is of differs from ``model``.

    None when there are none, or the file does not say. Losses and training's assigners are left out.
    """
    theirs = detector_model(file)
    if theirs is None:
        return None
    different = differences(theirs, model)
    if not different:
        return None
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    return (
        f"{file.path} is of a detector with other settings, in which its values may mean nothing ({file.path.name} -> "
        f"here): {'; '.join(different[:_NAMED])}{more}. Give the config, and the --cfg-options, that it was trained by"
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Lines "name: theirs -> ours" of two ``model`` configs; a part that only one of them has is no difference."""
    return identity_difference(*_common(_of_output(theirs), _of_output(ours)))


def _common(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both without the groups of settings, a mask head's or a neck's, that the other has not."""
    pairs = {name: (one.get(name), other.get(name)) for name in one.keys() | other.keys()}
    for name, (a, b) in list(pairs.items()):
        if isinstance(a, dict) and isinstance(b, dict):
            pairs[name] = _common(a, b)
        elif None in (a, b) and isinstance(b if a is None else a, (dict, list)):
            del pairs[name]
    first, second = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return first, second


def _of_output(model: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(with_registered_names(dict(model)), default=str))
    kept: dict[str, Any] = _cleaned(plain)
    return kept


def _cleaned(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            name: _cleaned(value)
            for name, value in node.items()
            if name not in _OF_NO_OUTPUT and not name.startswith(_OF_TRAINING) and value is not None
        }
    return [_cleaned(item) for item in node] if isinstance(node, list) else node
