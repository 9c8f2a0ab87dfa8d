"""mmdet classes known not to convert, and why: said to the user before anything runs, and in docs/zoo.md."""

_MASKS = "it predicts masks without a box head, and proposals have no masks"
_TEACHER = "it distils a trained teacher detector, and pretraining starts without one"
_CORNERS = "its classes are heat maps of corners: no predicted box is assigned to a proposal"
_CENTRES = (
    "its classes are heat maps with one centre a box, where no adapter reads ids yet; its successor, of the "
    "centernet-update configs, pretrains"
)
_TEXT = "its classes are words, and proposals have none"
_TRACKING = "tracking is another task; pretrain its detector by itself"
_CLASS_FREE = "it has no class branch that an embedding could replace"
_FIXED = "it takes its proposals from a file; the same heads pretrain as Faster R-CNN"

REASONS: dict[str, str] = {
    "AutoAssignHead": "its assignment is learned from class scores, by parameters of every class",
    "BoxInst": _MASKS,
    "CenterNetHead": _CENTRES,
    "CentripetalHead": _CORNERS,
    "CondInst": _MASKS,
    "CornerHead": _CORNERS,
    "CrowdDet": "it predicts pairs of boxes, and its loss chooses their order by class score",
    "FastRCNN": _FIXED,
    "GLIP": _TEXT,
    "GroundingDINO": _TEXT,
    "KnowledgeDistillationSingleStageDetector": _TEACHER,
    "LAD": _TEACHER,
    "Mask2Former": _MASKS,
    "MaskFormer": _MASKS,
    "RPN": _CLASS_FREE,
    "RTMDetInsHead": _MASKS,
    "RTMDetInsSepBNHead": _MASKS,
    "SOLO": _MASKS,
    "SOLOv2": _MASKS,
    "SoftTeacher": "it wraps a detector: pretrain that one, and load it as both student and teacher",
    "YOLACT": _MASKS,
    "YOLOV3Head": "one layer predicts box, objectness and class together: there is no class branch to replace",
    **dict.fromkeys(
        ("ByteTrack", "OCSORT", "StrongSORT", "DeepSORT", "QDTrack", "MaskTrackRCNN", "SORT", "BaseReID"),
        _TRACKING,
    ),
    "Mask2FormerVideo": _TRACKING,
}


def reason(*names: str) -> str | None:
    """Why a detector does not convert, by the class names in its config; None when that is not known."""
    return next((REASONS[name] for name in names if name in REASONS), None)
