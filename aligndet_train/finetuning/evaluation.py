"""Measure a fine-tuned detector: COCO's figures, overall and by class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope

from aligndet_train.allocator import keep_freed_memory
from aligndet_train.backbones.files import WeightsFile, read_file
from aligndet_train.console import warn
from aligndet_train.finetuning.coco_ap import ClassFigures, of_classes
from aligndet_train.finetuning.engine import new_runner
from aligndet_train.finetuning.label_warnings import label_warnings
from aligndet_train.finetuning.labels import LABELS, Labels, matched
from aligndet_train.finetuning.loading import load_into, skip_downloads
from aligndet_train.finetuning.other_model import other_model_warning
from aligndet_train.finetuning.recipe import FinetuneOptions, evaluation_config
from aligndet_train.finetuning.results import RESULTS, figures_of, write_results
from aligndet_train.finetuning.resume import RUN
from aligndet_train.finetuning.unreadable import unreadable_image_named
from proposals.errors import AlignDetError


@dataclass(frozen=True)
class Evaluation:
    """figures: AP, AP50, AP75, AP_S, AP_M and AP_L in per cent, see figures_of. classes: the first two by class."""

    figures: dict[str, float]
    classes: list[ClassFigures]


def evaluate(
    stock: Config, val: Labels, weights: Path, work_dir: Path, options: FinetuneOptions
) -> Evaluation:
    """COCO's figures of a fine-tuned detector on ``val``; also written to ``work_dir/results.json``.

    Classes are numbered as the checkpoint says that it learned them. Raises AlignDetError when the weights do not fill
    the detector, as untrained parts make every figure meaningless, ``val`` has boxes of other classes, or ``work_dir``
    is that of a fine-tuning run, which has results of its own.
    """
    if (work_dir / RUN).is_file():
        raise AlignDetError(
            f"{work_dir} holds a fine-tuning run, whose {RESULTS} would be lost: choose another --work-dir"
        )
    file = read_file(weights)
    learned = _classes_of(file)
    val = matched(val, learned or val.classes, work_dir / LABELS)
    config, faults = evaluation_config(stock, val, work_dir, options)
    unsaid = None if learned else f"{weights} does not say its classes: taken to be {', '.join(val.classes)}"
    other = other_model_warning(file, stock.model)
    for line in (faults, unsaid, other, _other_size_warning(weights, options), *label_warnings(val)):
        if line is not None:
            warn(line)
    skip_downloads(config)
    with DefaultScope.overwrite_default_scope("mmdet"):
        runner = new_runner(config)
        report = load_into(runner.model, file.state)
        if report.left_at_init:
            raise AlignDetError(
                f"{weights} leaves {len(report.left_at_init)} tensors of the detector untrained, "
                f"{report.left_at_init[0]} first: fine-tune it (`aligndet finetune`), or name the config it was "
                "trained by"
            )
        if report.unknown:
            raise AlignDetError(
                f"{weights} holds {len(report.unknown)} tensors that the detector does not have, {report.unknown[0]} "
                "first: name the config it was trained by"
            )
        keep_freed_memory()
        with unreadable_image_named():
            figures = figures_of(runner.test())
        classes = of_classes(runner.test_evaluator)
    run = {"weights": str(weights), "annotations": str(val.source)}
    write_results(work_dir / RESULTS, run, [figures], classes)
    return Evaluation(figures, classes)


def _classes_of(file: WeightsFile) -> tuple[str, ...] | None:
    """The classes a checkpoint of mmengine says that it learned, in its order; None where it says nothing."""
    meta = file.content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    noted = meta.get("dataset_meta")
    # The second as mmdet 2 wrote it.
    found = noted.get("classes") if isinstance(noted, Mapping) else meta.get("CLASSES")
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else None


def _other_size_warning(weights: Path, options: FinetuneOptions) -> str | None:
    """Whether the run that ``weights`` are of saw its images at another --image-size."""
    try:
        run = json.loads((weights.parent / RUN).read_bytes())
        size = run["options"]["image_size"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if size is None or tuple(size) == options.image_size:
        return None
    return f"{weights} was fine-tuned with --image-size {size[0]}x{size[1]}: its AP is another at other sizes"
