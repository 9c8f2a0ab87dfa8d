"""From a pretraining checkpoint to the detectors of torchvision and transformers, where they are the same."""

from pathlib import Path
from typing import Any, Literal

from aligndet_train.checkpoint import load_checkpoint
from aligndet_train.export import KeyReport, State, exported_state, key_report, write_weights
from proposals.errors import AlignDetError
from proposals.extras import require_extra

Library = Literal["torchvision", "transformers"]
LIBRARIES: dict[str, Library] = {"torchvision": "torchvision", "transformers": "transformers"}


def export_elsewhere(
    checkpoint_path: Path, out: Path, library: Library, *, keep_predictors: bool = False
) -> tuple[KeyReport, list[str]]:
    """Write weights for ``library``'s detector; returns what becomes of its keys, and sentences on what it
    computes otherwise, of the options that are checked.

    torchvision: ``out`` is a .pth or .safetensors for ``load_state_dict(..., strict=False)``. transformers: a folder
    for ``DetrForObjectDetection.from_pretrained``. Raises AlignDetError for an architecture the library lacks.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    exported, _ = exported_state(checkpoint, keep_predictors=keep_predictors)
    config = checkpoint["identity"]["stock_model"]
    if library == "torchvision":
        return _to_torchvision(exported, config, out, checkpoint)
    require_extra("transformers", "export --to transformers")
    return _to_transformers(exported, config, out)


def _to_transformers(exported: State, config: dict[str, Any], out: Path) -> tuple[KeyReport, list[str]]:
    from aligndet_train.export_transformers import differences, save_transformers, to_transformers

    if out.suffix in {".pth", ".safetensors"} or out.is_file():
        raise AlignDetError(f"transformers reads a folder: name one instead of {out}")
    renamed = to_transformers(exported)
    return key_report(renamed, save_transformers(exported, config, out)), differences(config)


def _to_torchvision(
    exported: State, config: dict[str, Any], out: Path, checkpoint: dict[str, Any]
) -> tuple[KeyReport, list[str]]:
    from aligndet_train.export_torchvision import differences, to_torchvision, torchvision_model

    theirs: State = torchvision_model(config).state_dict()
    renamed = to_torchvision(exported, config)
    report = key_report(renamed, theirs)
    # load_state_dict(strict=False) still refuses another shape: what does not fit is not written.
    write_weights({name: renamed[name] for name in report.loaded}, out, checkpoint)
    return report, differences(config)
