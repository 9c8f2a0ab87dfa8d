"""``checkpoint="aligndet-backbone:CLASS:FILE"``: weights of any project, wherever mmengine loads a checkpoint."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader

from aligndet_train.backbones.convert import convert

SCHEME = "aligndet-backbone:"


def load_converted(filename: str, map_location: Any = None) -> dict[str, Any]:
    """The tensors of FILE by the names of the mmdet backbone CLASS, under ``backbone.``.

    Both mmengine's Pretrained (with that prefix) and mmdet's Swin, which has a loader of its own, read them so.
    Raises AlignDetError as `convert` does.
    """
    kind, _, path = filename.removeprefix(SCHEME).partition(":")
    state = convert(Path(path)).for_backbone(kind)
    return {"state_dict": {f"backbone.{name}": value for name, value in state.items()}}


with suppress(KeyError):  # registered already, when this is imported twice
    CheckpointLoader.register_scheme(prefixes=SCHEME, loader=load_converted)
