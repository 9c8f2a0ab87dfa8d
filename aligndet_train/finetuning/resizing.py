"""``--image-size`` in a stock config: which of its sizes it stands for.

Most configs resize, and that is all. Those with mosaics, mixes or a fixed canvas build training images of several sizes
that belong together, around that of the test: there all of them are scaled by one factor.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from aligndet_train.detectors.class_names import class_name
from proposals.errors import AlignDetError

_RESIZES = ("Resize", "RandomResize", "RandomChoiceResize")
_MIXES = ("Mosaic", "CachedMosaic", "MixUp", "CachedMixUp")
# Sizes that networks want in multiples of their stride, and halves of them.
_STRIDE = 32
_CANVAS = {"img_scale": _STRIDE, "size": _STRIDE, "crop_size": _STRIDE, "random_size_range": _STRIDE,
           "border": _STRIDE // 2}  # fmt: skip


@dataclass(frozen=True)
class ImageSize:
    """sides: longer and shorter in px; None leaves a config as it is. factor: of all sizes of training, where the
    config builds its images on a canvas; None where it only resizes."""

    sides: tuple[int, int] | None
    factor: float | None = None

    @classmethod
    def of(cls, config: Config, sides: tuple[int, int] | None) -> "ImageSize":
        """Of ``sides`` in ``config``. Raises AlignDetError where images are tested as large as they are."""
        if sides is not None:
            _require_resized(config)
        usual = _tested_at(config)
        if sides is None or usual is None or not _has_canvas(config):
            return cls(sides)
        return cls(sides, max(sides) / usual)

    def fit(self, pipeline: Any, *, training: bool) -> Any:
        """A copy of ``pipeline`` that gives images of this size, without masks."""
        changed = deepcopy(pipeline)
        for step in steps_of(changed):
            kind = class_name(step["type"])
            if kind == "LoadAnnotations":
                step.pop("with_mask", None)
                step.pop("with_seg", None)
            elif self.sides is not None and kind in _RESIZES:
                self._fit_resize(step, training)
            elif self.factor is not None:
                # At least the size of what was resized to fit the test.
                _scale(step, self.factor, _CANVAS, round if training else math.ceil)
        return changed

    def fit_batches(self, config: Config) -> None:
        """The same of what ``config`` does to whole batches in training, in place."""
        if self.factor is not None:
            for augment in _batch_augments(config):
                _scale(augment, self.factor, {**_CANVAS, "scale": 1})

    def _fit_resize(self, step: Any, training: bool) -> None:
        if training and self.factor is not None:
            _scale(step, self.factor, {"scale": 1, "scales": 1})
            return
        for name in ("scales", "resize_type", "ratio_range"):
            step.pop(name, None)
        # Some detectors stretch what they see to a fixed shape (SSD); mmcv's own default is to stretch, too.
        step.update(type="Resize", scale=self.sides, keep_ratio=step.get("keep_ratio", False))


def steps_of(pipeline: Any) -> Iterator[Any]:
    """Every transform, also those that another one chooses from (DETR's RandomChoice)."""
    for step in pipeline or ():
        if isinstance(step, dict):
            yield step
        yield from steps_of(step.get("transforms", ()) if isinstance(step, dict) else step)


def _scale(
    step: Any, factor: float, names: Mapping[str, int], rounded: Callable[[float], int] = round
) -> None:
    for name, multiple in names.items():
        if step.get(name) is not None:
            step[name] = _scaled(step[name], factor, multiple, rounded)


def _scaled(value: Any, factor: float, multiple: int, rounded: Callable[[float], int]) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_scaled(item, factor, multiple, rounded) for item in value)
    # Without what multiplying added to a whole number.
    number = rounded(round(value * factor / multiple, 6)) * multiple
    return number or (multiple if value > 0 else -multiple)


def _has_canvas(config: Config) -> bool:
    train = list(_steps_of_loader(config.get("train_dataloader") or {}))
    mixed = any(class_name(step["type"]) in _MIXES for step in train)
    padded = any(class_name(step["type"]) == "Pad" and step.get("size") for step in train)
    return mixed or padded or bool(_batch_augments(config))


def _batch_augments(config: Config) -> Any:
    preprocessor = config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}
    return preprocessor.get("batch_augments") or ()


def _steps_of_loader(node: Any) -> Iterator[Any]:
    """Of all pipelines of a loader, whatever wraps its dataset."""
    if isinstance(node, dict):
        yield from steps_of(node.get("pipeline") or ())
        for name in ("dataset", "datasets"):
            yield from _steps_of_loader(node.get(name))
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from _steps_of_loader(part)


def _require_resized(config: Config) -> None:
    steps = list(_steps_of_loader(_tested(config)))
    if steps and not any(class_name(step["type"]) in _RESIZES for step in steps):
        raise AlignDetError(
            f"{config.filename or 'the config'} tests images as large as they are, and --image-size would train at "
            "another size than it measures at: drop it, or put a Resize into the config's test pipeline"
        )


def _tested(config: Config) -> Any:
    return config.get("val_dataloader") or config.get("test_dataloader") or {}


def _tested_at(config: Config) -> int | None:
    """Longer side in px to which images are brought for the test; None where the config does not say."""
    for step in _steps_of_loader(_tested(config)):
        if class_name(step["type"]) == "Resize" and isinstance(step.get("scale"), (list, tuple)):
            return int(max(step["scale"]))
    return None
