"""The boxes a converted detector predicted for its proposals, caught at its own box losses.

Three places cover the families: losses that take boxes (IoU and its kin) are modules and can be listened to; heads
that regress offsets are asked for their coder. Whose box it is follows from the loss's own target.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from aligndet_train.detectors import BACKGROUND

Pairs = list[tuple[Tensor, Tensor]]
# The package hides this module behind a function of the same name.
_IOU_LOSSES = tuple(
    kind
    for kind in vars(import_module("mmdet.models.losses.iou_loss")).values()
    if inspect.isclass(kind) and issubclass(kind, nn.Module)
)


@contextmanager
def watched_boxes(detector: Any) -> Iterator[Pairs]:
    """Pairs (predicted, target), [N, 4] xyxy px each, of every box loss that ``detector.loss`` computes inside."""
    pairs: Pairs = []
    with ExitStack() as stack:
        for module in detector.modules():
            if isinstance(module, _IOU_LOSSES):
                handle = module.register_forward_pre_hook(_listener(pairs), with_kwargs=True)
                stack.callback(handle.remove)
        heads = getattr(getattr(detector, "roi_head", None), "bbox_head", None)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            if hasattr(head, "bbox_coder"):
                stack.enter_context(_spied(head, "loss", partial(_roi_pairs, head), pairs))
        dense = getattr(detector, "bbox_head", None)
        if hasattr(dense, "bbox_coder") and "anchors" in _parameters(dense, "loss_by_feat_single"):
            stack.enter_context(_spied(dense, "loss_by_feat_single", partial(_anchor_pairs, dense), pairs))
        yield pairs


def ids_of(targets: Tensor, boxes: Tensor, ids: Tensor) -> Tensor:
    """[N] int64: the id of the proposal that each of ``targets`` [N, 4] is; -1 where it is none within a pixel."""
    if not len(boxes):
        return ids.new_full((len(targets),), -1)
    distance, nearest = torch.cdist(targets.float(), boxes.float(), p=torch.inf).min(dim=1)
    return torch.where(distance < 1, ids[nearest], -1)


def _listener(pairs: Pairs) -> Callable[..., None]:
    def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = dict(zip(("pred", "target", "weight"), args, strict=False)) | kwargs
        pred, target, weight = (values.get(name) for name in ("pred", "target", "weight"))
        if pred is None or target is None or pred.ndim != 2 or pred.shape[-1] != 4:
            return
        used = slice(None) if weight is None else (weight.reshape(len(pred), -1) > 0).any(dim=1)
        pairs.append((pred.detach()[used], target.detach()[used]))

    return listen


@contextmanager
def _spied(owner: Any, name: str, pairs_of: Callable[[dict[str, Any]], Any], pairs: Pairs) -> Iterator[None]:
    """For the length of the block, what ``owner.name`` is called with is also handed to ``pairs_of``."""
    method = getattr(owner, name)
    signature = inspect.signature(method)

    def spy(*args: Any, **kwargs: Any) -> Any:
        pairs.append(pairs_of(signature.bind(*args, **kwargs).arguments))
        return method(*args, **kwargs)

    vars(owner)[name] = spy
    try:
        yield
    finally:
        del vars(owner)[name]


def _roi_pairs(head: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    positive = (call["labels"] >= 0) & (call["labels"] != BACKGROUND)
    rois, offsets = call["rois"][positive, 1:], call["bbox_pred"].detach()[positive]
    return head.bbox_coder.decode(rois, offsets), _target(head, rois, call["bbox_targets"][positive])


def _anchor_pairs(head: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    labels = call["labels"].reshape(-1)
    positive = (labels >= 0) & (labels != BACKGROUND)
    anchors = call["anchors"].reshape(-1, 4)[positive]
    offsets = call["bbox_pred"].detach().permute(0, 2, 3, 1).reshape(-1, 4)[positive]
    targets = call["bbox_targets"].reshape(-1, 4)[positive]
    return head.bbox_coder.decode(anchors, offsets), _target(head, anchors, targets)


def _target(head: Any, anchors: Tensor, targets: Tensor) -> Tensor:
    return targets if head.reg_decoded_bbox else head.bbox_coder.decode(anchors, targets)


def _parameters(owner: Any, name: str) -> set[str]:
    method = getattr(owner, name, None)
    return set() if method is None else set(inspect.signature(method).parameters)
