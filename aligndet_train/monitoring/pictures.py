"""A picture of a training step: the two views of one image, its proposals, predicted boxes and matched ids."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aligndet_train.box_domain import BoxDomainPretrainer
from aligndet_train.monitoring.predicted import ids_of, watched_boxes
from aligndet_train.stream import Sample
from proposals.sheet import rank_colors

FOLDER = "pictures"
_HEADER, _GAP = 24, 8
_BACKGROUND, _TEXT, _GREY = (17, 19, 24), (229, 231, 235), (150, 150, 150)


class PictureHook(Hook):
    """Every ``interval`` steps, draw the first image of the batch as ``FOLDER/step_NNNNNN.jpg``; 0 draws none.

    most: proposals that get a colour, and one predicted box each. The step is computed once more for it, without
    gradients, and leaves neither the random state nor a batch statistic changed.
    """

    priority = "LOW"

    def __init__(self, folder: Path, interval: int, most: int = 8) -> None:
        self.folder, self.interval, self.most = folder / FOLDER, interval, most

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Draw when it is time."""
        done = runner.iter + 1
        if not self.interval or done % self.interval or not data_batch:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # On every rank: most losses average their counts over the ranks, and would wait for those that are not there.
        picture = step_picture(model, data_batch[0], self.most)
        if is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / f"step_{done:06d}.jpg", quality=90)


def step_picture(model: BoxDomainPretrainer, sample: Sample, most: int) -> Image.Image:
    """View 1 with the student's boxes beside view 2 with the teacher's; a colour and its number are a proposal's id.

    Thin: the proposal. Thick: the box predicted for it (the first, where there are many). Grey: other proposals.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(), torch.no_grad():
        (inputs, targets), (other_inputs, other_targets) = model.data_preprocessor([sample], True)["views"]
        drawn = [
            _panel(model, model.student, inputs, targets, most, "student, view 1"),
            _panel(model, model.teacher, other_inputs, other_targets, most, "teacher, view 2"),
        ]
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    height = max(panel.height for panel in drawn)
    picture = Image.new("RGB", (sum(panel.width for panel in drawn) + _GAP, height), _BACKGROUND)
    picture.paste(drawn[0], (0, 0))
    picture.paste(drawn[1], (drawn[0].width + _GAP, 0))
    return picture


def _panel(
    model: BoxDomainPretrainer, detector: Any, inputs: Tensor, targets: list[Any], most: int, title: str
) -> Image.Image:
    boxes, ids = targets[0].gt_instances.bboxes.clone(), targets[0].gt_instances.labels.clone()
    with watched_boxes(detector) as pairs:
        detector.loss(inputs, model.adapter.targets(targets))
    model.adapter.read(detector)
    predicted = _one_box_each(pairs, boxes, ids)
    height, width = targets[0].img_shape
    panel = Image.new("RGB", (width, height + _HEADER), _BACKGROUND)
    panel.paste(_pixels(model, inputs[0, :, :height, :width]), (0, _HEADER))
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    draw.text((6, 4), f"{title}: {len(boxes)} proposals, {len(predicted)} predicted", _TEXT, font)
    colors = rank_colors(most)
    # Alone in its batch, an image has its proposals' ranks as ids.
    placed = list(zip(boxes.tolist(), ids.tolist(), strict=True))
    for box, id_ in sorted(placed, key=lambda pair: -pair[1]):
        _rectangle(draw, box, colors[id_] if id_ < most else _GREY, 1)
    for id_, box in predicted.items():
        if id_ < most:
            _rectangle(draw, box, colors[id_], 3)
            draw.text((max(0.0, box[0]) + 5, max(0.0, box[1]) + _HEADER + 3), str(id_), colors[id_], font)
    return panel


def _one_box_each(pairs: list[tuple[Tensor, Tensor]], boxes: Tensor, ids: Tensor) -> dict[int, list[float]]:
    """Of every proposal that a box was predicted for, the first one."""
    found: dict[int, list[float]] = {}
    for predicted, target in reversed(pairs):  # the last decoder layer, the last stage
        for box, id_ in zip(predicted.tolist(), ids_of(target, boxes, ids).tolist(), strict=True):
            if id_ >= 0:
                found.setdefault(id_, box)
    return found


def _pixels(model: BoxDomainPretrainer, normalised: Tensor) -> Image.Image:
    preprocessor = model.data_preprocessor
    image = (normalised * preprocessor.std + preprocessor.mean).round().clamp(0, 255).byte()
    rgb = image if preprocessor.spec.bgr_to_rgb else image.flip(0)
    return Image.fromarray(np.ascontiguousarray(rgb.permute(1, 2, 0).cpu().numpy()))


def _rectangle(draw: ImageDraw.ImageDraw, box: list[float], color: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (round(value) for value in box)
    draw.rectangle((x1, y1 + _HEADER, max(x1, x2 - 1), max(y1, y2 - 1) + _HEADER), outline=color, width=width)
