"""The boxes a converted detector predicted for its proposals, caught while it computes its loss.

The final head is asked, in one of two ways. Losses that take boxes in pixels (IoU and its kin) are modules and can be
listened to: whose box it is follows from the loss's own target. A head whose box loss takes something else (offsets,
buckets, points, lengths in strides) has a reader: what its loss is called with is decoded as the head decodes when it
predicts, and its labels are the ids.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import count
from typing import Any, NamedTuple

import torch
from mmdet.models.dense_heads import (
    AnchorHead,
    CenterNetUpdateHead,
    DETRHead,
    FoveaHead,
    GFLHead,
    RepPointsHead,
    SABLRetinaHead,
    SSDHead,
    TOODHead,
)
from mmdet.models.roi_heads.bbox_heads import BBoxHead, DIIHead, SABLHead
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from aligndet_train.detectors import BACKGROUND

Call = dict[str, Any]
# The package hides this module behind a function of the same name.
_IOU_LOSSES = tuple(
    kind
    for kind in vars(import_module("mmdet.models.losses.iou_loss")).values()
    if inspect.isclass(kind) and issubclass(kind, nn.Module)
)


@dataclass
class Watched:
    """What was caught.

    boxes: by box loss, in call order, (predicted [N, 4] xyxy px, ids [N] int64 of the proposals they were predicted
    for, -1 for none). unread: why boxes are missing; None when none are.
    """

    boxes: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    unread: str | None = None

    def take(self, read: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Keep what ``read`` gives. Its error is kept too: raised in one rank's loss, it would leave others waiting."""
        try:
            predicted, ids = read()
            if predicted.shape != (len(ids), 4):
                raise ValueError(f"{len(ids)} boxes of shape {tuple(predicted.shape)}")
            self.boxes.append((predicted.detach(), ids))
        except Exception as error:
            self.unread = f"{type(error).__name__}: {error}"

    def keep_first(self, losses: int) -> None:
        """Drop the boxes of all but the first box losses."""
        del self.boxes[losses:]


@contextmanager
def watched_boxes(detector: Any, boxes: Tensor, ids: Tensor) -> Iterator[Watched]:
    """The boxes of every box loss of the final head that ``detector.loss`` computes inside.

    boxes: [N, 4] xyxy px, the proposals that it is given as ground truth; ids: [N] int64.
    """
    watched = Watched()
    with ExitStack() as stack:
        for head in _final_heads(detector):
            reader, losses = _reader(head), _losses_in_pixels(head)
            if reader is not None:
                stack.enter_context(_spied(head, reader, watched))
            elif not losses:
                watched.unread = f"nothing is known that reads them from {type(detector).__name__}'s box head"
            for loss in losses if reader is None else ():
                handle = loss.register_forward_pre_hook(_listener(watched, boxes, ids), with_kwargs=True)
                stack.callback(handle.remove)
            if isinstance(head, DETRHead):
                # What follows the decoder's layers are the encoder's boxes, and queries that were told theirs.
                stack.callback(watched.keep_first, len(detector.decoder.layers))
        yield watched


def ids_of(targets: Tensor, boxes: Tensor, ids: Tensor) -> Tensor:
    """[N] int64: the id of the proposal that each of ``targets`` [N, 4] is; -1 where it is none within a pixel."""
    if not len(boxes):
        return ids.new_full((len(targets),), -1)
    distance, nearest = torch.cdist(targets.float(), boxes.float(), p=torch.inf).min(dim=1)
    return torch.where(distance < 1, ids[nearest], -1)


def _final_heads(detector: Any) -> list[Any]:
    heads = getattr(detector, "roi_head", detector).bbox_head
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _losses_in_pixels(head: Any) -> list[nn.Module]:
    # CenterNet's boxes are in strides, of all levels together.
    listened = not isinstance(head, CenterNetUpdateHead)
    return [module for module in head.modules() if listened and isinstance(module, _IOU_LOSSES)]


def _listener(watched: Watched, boxes: Tensor, ids: Tensor) -> Callable[..., None]:
    def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = dict(zip(("pred", "target", "weight"), args, strict=False)) | kwargs
        watched.take(partial(_of_loss, boxes, ids, **values))

    return listen


def _of_loss(
    boxes: Tensor, ids: Tensor, pred: Tensor, target: Tensor, weight: Tensor | None = None, **_: Any
) -> tuple[Tensor, Tensor]:
    if weight is not None and len(pred):
        used = (weight.reshape(len(pred), -1) > 0).any(dim=1)
        pred, target = pred[used], target[used]
    return pred, ids_of(target, boxes, ids)


class _Reader(NamedTuple):
    """kind: the stock head; method: whose call tells what is needed; boxes: (head, call, rows) -> [N, 4]."""

    kind: Any
    method: str
    boxes: Callable[[Any, Call, Tensor], Tensor]


@contextmanager
def _spied(head: Any, reader: _Reader, watched: Watched) -> Iterator[None]:
    """For the length of the block, what ``reader.method`` is called with is read as well."""
    method = getattr(head, reader.method)
    # The stock signature: converted heads pass on what they do not name.
    signature = inspect.signature(getattr(reader.kind, reader.method))

    def spy(*args: Any, **kwargs: Any) -> Any:
        watched.take(lambda: _read(head, reader, signature.bind(head, *args, **kwargs).arguments))
        return method(*args, **kwargs)

    vars(head)[reader.method] = spy
    try:
        yield
    finally:
        del vars(head)[reader.method]


def _read(head: Any, reader: _Reader, call: Call) -> tuple[Tensor, Tensor]:
    labels = call["labels"].reshape(-1) if "labels" in call else _fovea_labels(head, call)
    rows = ((labels >= 0) & (labels != BACKGROUND)).nonzero().squeeze(1)
    none = torch.zeros((0, 4), device=labels.device)
    return reader.boxes(head, call, rows) if len(rows) else none, labels[rows]


def _reader(head: Any) -> _Reader | None:
    """The reader of a head whose box loss cannot be listened to; None where it can, or where there is none."""
    known = (
        _Reader(SSDHead, "loss_by_feat_single", _default_boxes),
        _Reader(SABLRetinaHead, "loss_by_feat_single", partial(_bucket_boxes, count())),
        _Reader(FoveaHead, "loss_by_feat", _fovea_boxes),
        _Reader(RepPointsHead, "loss_by_feat_single", _point_boxes),
        _Reader(GFLHead, "loss_by_feat_single", _distribution_boxes),
        _Reader(TOODHead, "loss_by_feat_single", _boxes_in_strides),
        _Reader(SABLHead, "loss", _roi_boxes),
        _Reader(BBoxHead, "loss", _roi_boxes),
        _Reader(AnchorHead, "loss_by_feat_single", _anchor_boxes),
    )
    reader = next((reader for reader in known if isinstance(head, reader.kind)), None)
    if reader is None or isinstance(head, DIIHead) or not getattr(head, "with_reg", True):
        return None
    listened = reader.kind is AnchorHead and isinstance(getattr(head, "loss_bbox", None), _IOU_LOSSES)
    return None if listened else reader


def _decoded(head: Any, priors: Tensor, predictions: Any) -> Tensor:
    boxes = head.bbox_coder.decode(priors, predictions)
    # Buckets come with a confidence.
    box_tensor: Tensor = get_box_tensor(boxes[0] if isinstance(boxes, tuple) else boxes)
    return box_tensor


def _rows(level: Tensor, width: int, rows: Tensor) -> Tensor:
    """Of [B, A * width, H, W], the predictions [N, width] of ``rows``."""
    return level.permute(0, 2, 3, 1).reshape(-1, width)[rows]


def _roi_boxes(head: Any, call: Call, rows: Tensor) -> Tensor:
    predictions, rois = call["bbox_pred"], call["rois"][rows, 1:]
    if isinstance(predictions, tuple):
        return _decoded(head, rois, tuple(part[rows] for part in predictions))
    return _decoded(head, rois, predictions[rows])


def _anchor_boxes(head: Any, call: Call, rows: Tensor) -> Tensor:
    offsets = _rows(call["bbox_pred"], head.bbox_coder.encode_size, rows)
    return _decoded(head, call["anchors"].reshape(-1, 4)[rows], offsets)


def _default_boxes(head: Any, call: Call, rows: Tensor) -> Tensor:
    return _decoded(head, call["anchor"][rows], call["bbox_pred"][rows])


def _bucket_boxes(levels: Iterator[int], head: Any, call: Call, rows: Tensor) -> Tensor:
    size, level = call["bbox_pred"][0].shape[-2:], next(levels)
    squares = head.square_anchor_generator.single_level_grid_priors(size, level, device=rows.device)
    images = len(call["bbox_pred"][0])
    parts = tuple(_rows(part, 4 * head.side_num, rows) for part in call["bbox_pred"])
    return _decoded(head, squares.repeat(images, 1)[rows], parts)


def _point_boxes(head: Any, call: Call, rows: Tensor) -> Tensor:
    points = call["pts_pred_refine"].reshape(-1, 2 * head.num_points)[rows]
    boxes: Tensor = head.points2bbox(points, y_first=False)
    return boxes


def _distribution_boxes(head: Any, call: Call, rows: Tensor) -> Tensor:
    stride = call["stride"][0]
    centers = head.anchor_center(call["anchors"].reshape(-1, 4)[rows]) / stride
    distances = head.integral(_rows(call["bbox_pred"], 4 * (head.reg_max + 1), rows))
    boxes: Tensor = _decoded(head, centers, distances) * stride
    return boxes


def _boxes_in_strides(head: Any, call: Call, rows: Tensor) -> Tensor:
    boxes: Tensor = _rows(call["bbox_pred"], 4, rows) * call["stride"][0]
    return boxes


def _fovea_priors(head: Any, call: Call) -> list[Tensor]:
    sizes = [level.shape[-2:] for level in call["bbox_preds"]]
    priors: list[Tensor] = head.prior_generator.grid_priors(sizes, device=call["bbox_preds"][0].device)
    return priors


def _fovea_labels(head: Any, call: Call) -> Tensor:
    sizes = [level.shape[-2:] for level in call["bbox_preds"]]
    labels: Tensor = head.get_targets(call["batch_gt_instances"], sizes, _fovea_priors(head, call))[0]
    return labels


def _fovea_boxes(head: Any, call: Call, rows: Tensor) -> Tensor:
    shape = call["batch_img_metas"][0]["img_shape"]
    levels = zip(call["bbox_preds"], _fovea_priors(head, call), head.base_edge_list, strict=True)
    boxes = [
        head._bbox_decode(priors.repeat(len(level), 1), level.permute(0, 2, 3, 1).reshape(-1, 4), edge, shape)
        for level, priors, edge in levels
    ]
    return torch.cat(boxes)[rows]
