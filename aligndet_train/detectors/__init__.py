"""Turning a stock mmdet detector into a pretraining model: one adapter per family, one file per adapter."""

from aligndet_train.detectors.adapter import BACKGROUND, FamilyAdapter
from aligndet_train.detectors.aligned import RTMDetAdapter, TOODAdapter, YOLOXAdapter
from aligndet_train.detectors.anchor import (
    ATSSAdapter,
    DDODAdapter,
    GFLAdapter,
    GuidedAnchoringAdapter,
    RetinaNetAdapter,
    SSDAdapter,
    YOLOFAdapter,
)
from aligndet_train.detectors.cascade import CascadeRCNNAdapter
from aligndet_train.detectors.class_names import class_name
from aligndet_train.detectors.fsaf import FSAFAdapter
from aligndet_train.detectors.point import (
    CenterNetUpdateAdapter,
    FCOSAdapter,
    FoveaBoxAdapter,
    RepPointsAdapter,
    VFNetAdapter,
)
from aligndet_train.detectors.query import DeformableQueryAdapter, QueryAdapter
from aligndet_train.detectors.sparse_rcnn import SparseRCNNAdapter
from aligndet_train.detectors.two_stage import FasterRCNNAdapter
from aligndet_train.detectors.unsupported import reason
from proposals.errors import AlignDetError

ADAPTERS: tuple[type[FamilyAdapter], ...] = (
    FCOSAdapter, CenterNetUpdateAdapter, FoveaBoxAdapter, RepPointsAdapter, VFNetAdapter,
    RetinaNetAdapter, ATSSAdapter, DDODAdapter, GFLAdapter, FSAFAdapter, GuidedAnchoringAdapter,
    SSDAdapter, YOLOFAdapter,
    TOODAdapter, RTMDetAdapter, YOLOXAdapter,
    FasterRCNNAdapter, CascadeRCNNAdapter, SparseRCNNAdapter,
    QueryAdapter, DeformableQueryAdapter,
)  # fmt: skip

__all__ = ["ADAPTERS", "BACKGROUND", "FamilyAdapter", "adapter_for"]


def adapter_for(detector_type: str, head_type: str) -> FamilyAdapter:
    """The adapter of a detector, by the class names in its config.

    detector_type: ``model.type``; head_type: the type of its final head (``bbox_head``, or the RoI head's); each
    with or without its scope (``mmdet.RetinaNet``) or module. Raises AlignDetError naming the class and what an
    adapter must answer.
    """
    detector_type, head_type = class_name(detector_type), class_name(head_type)
    for adapter in ADAPTERS:
        if adapter.matches(detector_type, head_type):
            return adapter()
    why = reason(detector_type, head_type)
    if why is not None:
        raise AlignDetError(f"{detector_type} with {head_type} cannot be pretrained: {why}")
    known = "; ".join(f"{a.family}: {', '.join(a.head_types)}" for a in ADAPTERS)
    raise AlignDetError(
        f"no adapter for the head {head_type} of {detector_type}. Supported heads: {known}. A new family is one file "
        "in aligndet_train/detectors: a FamilyAdapter says which layers the unsupervised head replaces, where "
        "predictions and their assigned ids are read, which losses stay and which weights are exported"
    )
