"""A picture of a training step: the two views of one image, its proposals, predicted boxes and matched ids."""

import copy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aligndet_train.box_domain import BoxDomainPretrainer
from aligndet_train.distributed import unwrapped
from aligndet_train.monitoring.predicted import Watched, watched_boxes
from aligndet_train.stream import Sample
from proposals.errors import AlignDetError
from proposals.sheet import rank_colors

FOLDER = "pictures"
# More than a step takes.
_PATIENCE = timedelta(minutes=5)
_HEADER, _GAP = 24, 8
_BACKGROUND, _TEXT, _GREY = (17, 19, 24), (229, 231, 235), (150, 150, 150)


class PictureHook(Hook):
    """Every ``interval`` steps, draw the first image of the batch as ``FOLDER/step_NNNNNN.jpg``; 0 draws none.

    most: proposals that get a colour, and one predicted box each. The step is computed once more for it, without
    gradients, on a copy of all but the weights: the run goes on as without it. A picture that fails is left out, on
    every rank, and the first time this is said.
    """

    # After the checkpoint: no picture may cost the steps before it.
    priority = "LOWEST"

    def __init__(self, folder: Path, interval: int, most: int = 8) -> None:
        self.folder, self.interval, self.most = folder / FOLDER, interval, most
        self._told: set[str] = set()
        self._ranks: Any = None

    def before_train(self, runner: Runner) -> None:
        """A way for the ranks to talk that losses do not use."""
        if self.interval:
            self._ranks = patient_ranks(_PATIENCE)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Draw when it is time. Raises AlignDetError where ranks wait for each other's losses in vain."""
        done = runner.iter + 1
        if not self.interval or done % self.interval or not data_batch:
            return
        model = unwrapped(runner.model)
        name, views, failure = type(model.student).__name__, [], ""
        try:
            # On every rank: most losses average their counts over the ranks, and would wait for those not there.
            views = seen_views(model, data_batch[0])
        except Exception as error:
            failure = _said(error)
        if succeeded_everywhere(not failure, self._ranks) and is_main_process():
            failure = self._draw(views, done)
        if failure:
            self._tell(runner, f"pictures of {name} are left out where they fail", failure)
        for view in views:
            if view.unread:
                self._tell(runner, f"pictures of {name} lack predicted boxes", view.unread)

    def _draw(self, views: "list[SeenView]", done: int) -> str:
        """What failed; empty when nothing did."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            drawn(views, self.most).save(self.folder / f"step_{done:06d}.jpg", quality=90)
        except Exception as error:
            return _said(error)
        return ""

    def _tell(self, runner: Runner, what: str, why: str) -> None:
        if what not in self._told:
            self._told.add(what)
            runner.logger.warning(f"{what} ({why}). Training goes on; --picture-interval 0 draws none")


def patient_ranks(patience: timedelta) -> Any:
    """All ranks, as a process group that waits no longer than ``patience``; None in a single process."""
    return None if get_world_size() == 1 else dist.new_group(backend="gloo", timeout=patience)


def succeeded_everywhere(success: bool, ranks: Any) -> bool:
    """Whether every rank of ``ranks`` computed the step again; every rank must ask.

    Raises AlignDetError when one does not: it waits inside the losses of a rank that failed.
    """
    if ranks is None:
        return success
    failures = torch.tensor(int(not success))
    try:
        dist.all_reduce(failures, group=ranks)
    except RuntimeError as error:
        raise AlignDetError(
            "the picture of a step failed on one rank, inside losses for which other ranks still wait. The same "
            "command with --picture-interval 0 goes on from the last checkpoint, without pictures"
        ) from error
    return not failures


@dataclass(frozen=True)
class SeenView:
    """One view of one image, and what a detector made of it.

    pixels: [H, W, 3] uint8 RGB. boxes: [N, 4] xyxy px, the proposals, with ids [N] int64. predicted: {id: xyxy px}.
    unread: why predicted boxes are missing; None when none are.
    """

    title: str
    pixels: "np.ndarray[Any, Any]"
    boxes: Tensor
    ids: Tensor
    predicted: dict[int, list[float]]
    unread: str | None


def step_picture(model: BoxDomainPretrainer, sample: Sample, most: int) -> Image.Image:
    """View 1 with the student's boxes beside view 2 with the teacher's; a colour and its number are a proposal's id.

    Thin: the proposal. Thick: the box predicted for it (the first, where there are many). Grey: other proposals.
    Nothing of ``model`` changes, nor the random state.
    """
    return drawn(seen_views(model, sample), most)


def seen_views(model: BoxDomainPretrainer, sample: Sample) -> list[SeenView]:
    """What student and teacher see of ``sample``; every rank must call it, and nothing of ``model`` changes."""
    aside = _aside(model)
    with torch.random.fork_rng(), torch.no_grad():
        (inputs, targets), (other_inputs, other_targets) = aside.data_preprocessor([sample], True)["views"]
        return [
            _seen(aside, aside.student, inputs, targets, "student, view 1"),
            _seen(aside, aside.teacher, other_inputs, other_targets, "teacher, view 2"),
        ]


def _aside(model: BoxDomainPretrainer) -> BoxDomainPretrainer:
    """A copy with the very same weights and frozen backbone: what a loss keeps of its batch stays in the copy."""
    shared = (*model.parameters(), *model.student.backbone.modules())
    return copy.deepcopy(model, {id(part): part for part in shared})


def _seen(
    model: BoxDomainPretrainer, detector: Any, inputs: Tensor, targets: list[Any], title: str
) -> SeenView:
    proposals = targets[0].gt_instances
    boxes, ids = proposals.bboxes.clone(), proposals.labels.clone()
    with watched_boxes(detector, boxes, ids) as watched:
        detector.loss(inputs, model.adapter.targets(targets))
    model.adapter.read(detector)
    height, width = targets[0].img_shape
    pixels = _pixels(model, inputs[0, :, :height, :width])
    return SeenView(title, pixels, boxes, ids, _one_box_each(watched), watched.unread)


def _one_box_each(watched: Watched) -> dict[int, list[float]]:
    """Of every proposal that a box was predicted for, the first one."""
    found: dict[int, list[float]] = {}
    for boxes, ids in reversed(watched.boxes):  # the last decoder layer, the last stage
        for box, id_ in zip(boxes.tolist(), ids.tolist(), strict=True):
            if id_ >= 0:
                found.setdefault(id_, box)
    return found


def drawn(views: list[SeenView], most: int) -> Image.Image:
    """``views`` side by side; see step_picture."""
    panels = [_panel(view, most) for view in views]
    width = sum(panel.width + _GAP for panel in panels) - _GAP
    picture = Image.new("RGB", (width, max(panel.height for panel in panels)), _BACKGROUND)
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + _GAP
    return picture


def _panel(view: SeenView, most: int) -> Image.Image:
    height, width = view.pixels.shape[:2]
    panel = Image.new("RGB", (width, height + _HEADER), _BACKGROUND)
    panel.paste(Image.fromarray(view.pixels), (0, _HEADER))
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    count = "predicted boxes not read" if view.unread else f"{len(view.predicted)} predicted"
    draw.text((6, 4), f"{view.title}: {len(view.boxes)} proposals, {count}", _TEXT, font)
    colors = rank_colors(most)
    # Alone in its batch, an image has its proposals' ranks as ids.
    placed = list(zip(view.boxes.tolist(), view.ids.tolist(), strict=True))
    for box, id_ in sorted(placed, key=lambda pair: -pair[1]):
        _rectangle(draw, box, colors[id_] if id_ < most else _GREY, 1)
    for id_, box in view.predicted.items():
        if id_ < most:
            _rectangle(draw, box, colors[id_], 3)
            draw.text((max(0.0, box[0]) + 5, max(0.0, box[1]) + _HEADER + 3), str(id_), colors[id_], font)
    return panel


def _pixels(model: BoxDomainPretrainer, normalised: Tensor) -> "np.ndarray[Any, Any]":
    preprocessor = model.data_preprocessor
    image = (normalised * preprocessor.std + preprocessor.mean).round().clamp(0, 255).byte()
    rgb = image if preprocessor.spec.bgr_to_rgb else image.flip(0)
    return np.ascontiguousarray(rgb.permute(1, 2, 0).cpu().numpy())


def _rectangle(draw: ImageDraw.ImageDraw, box: list[float], color: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (round(value) for value in box)
    draw.rectangle((x1, y1 + _HEADER, max(x1, x2 - 1), max(y1, y2 - 1) + _HEADER), outline=color, width=width)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
