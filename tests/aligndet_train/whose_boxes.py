"""Whose box is it? Encoders in the place of projectors tell where every predicted box lies; its id must fit that."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmdet.models import DIIHead
from mmdet.models.task_modules import MaxIoUAssigner
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import box_iou

from aligndet_train.box_domain import BoxDomainPretrainer
from aligndet_train.detectors import BACKGROUND
from aligndet_train.detectors.neutral import ScoresAside

# (places [N, D], ids [N]) -> of every box with an id, whether it lies where that proposal does: [P] bool.
Check = Callable[[Tensor, Tensor], Tensor]


class Proposals:
    """Of a batch: the boxes [M, 4] px, their ids [M], and the images they are in [M]."""

    def __init__(self, targets: list[Any]) -> None:
        found = [target.gt_instances for target in targets]
        self.batch = len(targets)
        self.boxes = torch.cat([gt.bboxes for gt in found])
        self.ids = torch.cat([gt.labels for gt in found])
        self.images = torch.cat([torch.full((len(gt),), image) for image, gt in enumerate(found)])

    def rows(self, ids: Tensor) -> Tensor:
        """[P]: the row of each of ``ids`` [P]."""
        row_of = {int(known): row for row, known in enumerate(self.ids)}
        return torch.tensor([row_of[int(wanted)] for wanted in ids], dtype=torch.long)


def read_places(
    model: BoxDomainPretrainer, inputs: Tensor, targets: list[Any]
) -> list[tuple[Tensor, Tensor, Check]]:
    """(places, ids, check) of every stage, of a copy of the student whose projectors became encoders."""
    model = copy.deepcopy(model)
    student: Any = model.student
    proposals = Proposals(targets)
    if not hasattr(student, "roi_head"):
        checks = [_dense_check(model, proposals, inputs.shape[-2:])]
    else:
        heads, extractors = map(_as_list, (student.roi_head.bbox_head, student.roi_head.bbox_roi_extractor))
        kind = _matched_check if isinstance(heads[0], DIIHead) else _roi_check
        dims = model.config.embed_dims
        checks = [kind(*stage, dims, proposals) for stage in zip(heads, extractors, strict=True)]
    with torch.no_grad():
        student.loss(inputs, model.adapter.targets(targets))
    readings = model.adapter.read(student)
    return [(r.embeddings, r.ids, check) for r, check in zip(readings, checks, strict=True)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, nn.ModuleList) else [value]


class _CellEncoder(nn.Module):
    """A dense predictor whose embedding of a box is the image, cell, level and anchor it is predicted from."""

    def __init__(self, dims: int, anchors: int, sizes: list[torch.Size]) -> None:
        super().__init__()
        self.dims, self.anchors, self.sizes = dims, anchors, sizes

    def forward(self, features: Tensor, mask: None = None) -> Tensor:
        """[B, C, H, W] -> [B, A * D, H, W]: image, level, y, H, x, W, anchor, A, zeros."""
        images, (height, width) = len(features), features.shape[-2:]
        counts = (images, self.anchors, height, width)
        image, anchor, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in counts), indexing="ij")
        level, rows, columns, anchors = (
            torch.full_like(x, n) for n in (len(self.sizes), height, width, self.anchors)
        )
        self.sizes.append(features.shape[-2:])
        places = torch.stack([image, level, y, rows, x, columns, anchor, anchors], dim=2)
        return pad(places, (0, 0, 0, 0, 0, self.dims - 8)).flatten(1, 2)


def _dense_check(model: BoxDomainPretrainer, proposals: Proposals, canvas: torch.Size) -> Check:
    head, sizes = model.student.bbox_head, []

    def encoder(stock: nn.Module, anchors: int) -> nn.Module:
        cells = _CellEncoder(model.config.embed_dims, anchors, sizes)
        if not isinstance(stock, ScoresAside):
            return cells
        stock.projector = cells
        return stock

    model.adapter.replace_predictor(head, encoder)
    if hasattr(head, "reppoints_pts_init_out"):
        # Untrained, its boxes are points, which overlap nothing: here they are some strides wide.
        steps = torch.tensor([-2.0, 0.0, 2.0])
        head.reppoints_pts_init_out.bias.data = torch.cartesian_prod(steps, steps).flatten()
    assigner = getattr(head, "refine_assigner", None) or getattr(head, "assigner", None)
    if isinstance(assigner, MaxIoUAssigner):
        return partial(_anchors_overlap, _boxes_that_are_assigned(head), proposals)
    return partial(_centres_lie_inside, proposals, canvas)


def _centres_lie_inside(proposals: Proposals, canvas: torch.Size, places: Tensor, ids: Tensor) -> Tensor:
    """Right image, and the cell's centre inside the proposal, or less than a cell outside."""
    positive = ids != BACKGROUND
    image, _, y, rows, x, columns = places[positive, :6].unbind(1)
    own = proposals.rows(ids[positive])
    left, top, right, bottom = proposals.boxes[own].unbind(1)
    step_y, step_x = canvas[0] / rows, canvas[1] / columns
    y, x = (y + 0.5) * step_y, (x + 0.5) * step_x
    inside = (x > left - step_x) & (x < right + step_x) & (y > top - step_y) & (y < bottom + step_y)
    return inside & (image.long() == proposals.images[own])


def _boxes_that_are_assigned(head: Any) -> list[list[list[Tensor]]]:
    """Filled by the head's last ``get_targets``: by image and level, [H * W * A * k, 4] px, k for every prediction."""
    stock, boxes = head.get_targets, []

    def listening(*args: Any, **kwargs: Any) -> Any:
        by_image = args[0] if args else kwargs["proposals_list"]
        boxes[:] = [list(levels) for levels in by_image]
        return stock(*args, **kwargs)

    head.get_targets = listening
    return boxes


def _anchors_overlap(
    boxes: list[list[list[Tensor]]], proposals: Proposals, places: Tensor, ids: Tensor
) -> Tensor:
    chosen = []
    for image, level, y, rows, x, columns, anchor, anchors in places[:, :8].long().tolist():
        of_level = boxes[image][level].unflatten(0, (rows * columns * anchors, -1))
        chosen.append(of_level[(y * columns + x) * anchors + anchor])
    most = max(map(len, chosen))
    # Of several boxes that stand for one prediction (SABL), the one that overlaps most counts.
    several = torch.stack([one.repeat(most // len(one), 1) for one in chosen], dim=1)
    overlaps = torch.stack([box_iou(one, proposals.boxes) for one in several]).amax(dim=0)
    return _overlap_most(proposals, overlaps, places[:, 0].long(), ids)


def _overlap_most(proposals: Proposals, overlaps: Tensor, images: Tensor, ids: Tensor) -> Tensor:
    """overlaps: [N, M]. Right image, and the proposal is the one that the box overlaps most, or the other way round.

    The other way round is mmdet's match_low_quality; a proposal itself, which samplers add, does not count there.
    """
    overlaps = torch.where(images[:, None] == proposals.images[None], overlaps, -1)
    positive = ids != BACKGROUND
    own = proposals.rows(ids[positive])
    overlap = overlaps[positive].gather(1, own[:, None])[:, 0]
    best_of_box = overlaps[positive].amax(dim=1)
    best_of_proposal = overlaps.masked_fill(overlaps > 1 - 1e-4, -1).amax(dim=0)[own]
    return (overlap > 0) & ((overlap >= best_of_box - 1e-4) | (overlap >= best_of_proposal - 1e-4))


class _RoIEncoder(nn.Module):
    """A RoI head's class predictor whose embedding of a RoI is (image, x1, y1, x2, y2)."""

    def __init__(self, extractor: nn.Module, dims: int) -> None:
        super().__init__()
        self.dims = dims
        extractor.register_forward_pre_hook(self._see)

    def _see(self, extractor: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.rois = inputs[1]

    def forward(self, features: Tensor) -> Tensor:
        """[N, C] -> [N, D]."""
        return pad(self.rois, (0, self.dims - 5))


def _roi_check(head: Any, extractor: nn.Module, dims: int, proposals: Proposals) -> Check:
    head.fc_cls = _RoIEncoder(extractor, dims)

    def check(places: Tensor, ids: Tensor) -> Tensor:
        # TridentNet has the batch once for every branch.
        images = places[:, 0].long() % proposals.batch
        return _overlap_most(proposals, box_iou(places[:, 1:5], proposals.boxes), images, ids)

    return check


class _RowEncoder(nn.Module):
    """A class predictor whose embedding of a box is its row in the batch."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, features: Tensor) -> Tensor:
        """[N, C] -> [N, D]."""
        return pad(torch.arange(len(features), dtype=torch.float)[:, None], (0, self.dims - 1))


def _matched_check(head: Any, extractor: nn.Module, dims: int, proposals: Proposals) -> Check:
    """The box that the stock head regresses a row to is that of the row's proposal, and no other row has one."""
    head.fc_cls = _RowEncoder(dims)
    stock, sampled = head.loss_and_target, []

    def listening(
        cls_score: Tensor, bbox_pred: Tensor, sampling_results: list[Any], *rest: Any, **more: Any
    ) -> Any:
        sampled.extend(sampling_results)
        return stock(cls_score, bbox_pred, sampling_results, *rest, **more)

    head.loss_and_target = listening

    def check(places: Tensor, ids: Tensor) -> Tensor:
        queries = len(places) // proposals.batch
        matched = torch.cat([image * queries + result.pos_inds for image, result in enumerate(sampled)])
        boxes = torch.cat([result.pos_gt_bboxes for result in sampled])
        positive = ids != BACKGROUND
        assert sorted(places[positive, 0].tolist()) == sorted(matched.tolist())
        box_of = dict(zip(matched.tolist(), boxes, strict=True))
        wanted = torch.stack([box_of[int(row)] for row in places[positive, 0]])
        return (wanted == proposals.boxes[proposals.rows(ids[positive])]).all(dim=1)

    return check
