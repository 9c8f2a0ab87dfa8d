"""``checkpoint="aligndet-backbone:CLASS:FILE"``: weights of any project, wherever mmengine loads a checkpoint."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader

from aligndet_train.backbones.convert import convert

SCHEME = "aligndet-backbone:"
# mmdet's classes with a loader of their own that takes a whole file, names as they stand; Swin's takes what is under
# ``backbone.``, as mmengine's does.
_BARE = ("DetectoRS_ResNet", "DetectoRS_ResNeXt", "PyramidVisionTransformer", "PyramidVisionTransformerV2")


def load_converted(filename: str, map_location: Any = None) -> dict[str, Any]:
    """The tensors of FILE by the names of the mmdet backbone CLASS, as whatever loads that class looks for them.

    That is under ``backbone.`` but for the classes that have a loader of their own. Raises AlignDetError as `convert`
    does.
    """
    kind, _, path = filename.removeprefix(SCHEME).partition(":")
    state = convert(Path(path)).for_backbone(kind)
    prefix = "" if kind in _BARE else "backbone."
    return {"state_dict": {f"{prefix}{name}": value for name, value in state.items()}}


with suppress(KeyError):  # registered already, when this is imported twice
    CheckpointLoader.register_scheme(prefixes=SCHEME, loader=load_converted)
