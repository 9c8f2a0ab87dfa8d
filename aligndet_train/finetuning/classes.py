"""A model for the user's own classes: as many as the labels have, and no branch that boxes cannot teach."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import ConfigDict

from aligndet_train.detectors.class_names import class_name
from proposals.errors import AlignDetError

# Detectors that cannot be built without their mask branch.
_NEED_MASKS = ("SCNet", "PointRend", "PanopticFPN")
# Box heads that predict masks as well.
_OF_MASKS = ("RTMDetInsHead", "RTMDetInsSepBNHead")


def set_classes(model: ConfigDict, classes: Sequence[str]) -> None:
    """Let the heads of ``model`` tell ``classes`` apart, in place. RPNs and other parts without classes stay so.

    Raises AlignDetError where the box head does not say how many it has, or the model predicts masks as well.
    """
    usual = _final_head(model).get("num_classes")
    if usual is None:
        raise AlignDetError(
            "the model's box head says no num_classes: it cannot be fitted to your categories. Write one into the "
            "config, whatever the number"
        )
    if _has_masks(model):
        droppable = "mask_head" in (model.get("roi_head") or {}) and class_name(model.type) not in _NEED_MASKS
        raise AlignDetError(
            "this detector also predicts masks, and what is done here is on boxes. Use its box-only sibling"
            + (", or drop the branch: --cfg-options model.roi_head.mask_head=None" if droppable else "")
        )
    for head in _with_classes(model):
        # Class-agnostic parts (an RPN has one class) stay so, and classes of pixels.
        if head["num_classes"] == usual:
            head["num_classes"] = len(classes)


def require_no_map_of_classes(model: ConfigDict) -> None:
    """Raise AlignDetError for a branch that learns from labels of pixels; it does no harm where nothing is trained."""
    if (model.get("roi_head") or {}).get("semantic_head"):
        raise AlignDetError(
            "this detector also learns a map of classes, and fine-tuning here is on boxes. Use its sibling without, "
            "or drop the branch: --cfg-options model.roi_head.semantic_head=None"
        )


def _final_head(model: ConfigDict) -> Any:
    head = model.get("bbox_head") or (model.get("roi_head") or {}).get("bbox_head") or {}
    return head[-1] if isinstance(head, (list, tuple)) else head


def _with_classes(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if isinstance(node.get("num_classes"), int):
            yield node
        for child in node.values():
            yield from _with_classes(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _with_classes(child)


def _has_masks(model: ConfigDict) -> bool:
    of_rois = (model.get("roi_head") or {}).get("mask_head")
    return bool(of_rois or model.get("mask_head") or class_name(_final_head(model)["type"]) in _OF_MASKS)
