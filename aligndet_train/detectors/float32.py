"""What computes in float32 under autocast: bfloat16 has 8 bits, so a coordinate in it is off by pixels."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import AutoAssignHead, DABDETRHead, DETRHead, FreeAnchorRetinaHead, TOODHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from torch import Tensor, nn

# mmdet names of small layers that give points in [0, 1].
_POINT_LAYERS = ("reference_points_fc", "ref_point_head", "ref_anchor_head", "bbox_embed")
# RoI extractors round boxes to the type of the features.
_TAKES_COORDINATES = (MultiScaleDeformableAttention, BaseRoIExtractor, DETRHead)
# These compare probabilities in the head, not in a loss module.
_HEADS_OF_PROBABILITIES = (AutoAssignHead, FreeAnchorRetinaHead)
_HALF = (torch.bfloat16, torch.float16)
_PREFIX = "Float32"


def keep_sensitive_float32(detector: nn.Module) -> None:
    """Let the parts of ``detector``, stock or converted, compute in float32 that must not be under autocast, in place.

    These are those that take or give coordinates, and losses of probabilities: CUDA's autocast refuses
    ``binary_cross_entropy``, whatever the type of its inputs. Without autocast nothing changes.
    """
    for name, module in list(detector.named_modules()):
        if isinstance(module, DABDETRHead):
            # Its decoder adds what this layer gives to the reference points of the next.
            keep_float32(module.fc_reg)
        if isinstance(module, TOODHead):
            # A deformable convolution of boxes, which rounds them to the type of its offsets.
            keep_float32(module, "deform_sampling")
        elif isinstance(module, _HEADS_OF_PROBABILITIES):
            keep_float32(module, "loss_by_feat")
        elif (
            isinstance(module, _TAKES_COORDINATES)
            or name.split(".")[-1] in _POINT_LAYERS
            # So say mmdet's losses that take probabilities, not logits.
            or getattr(module, "activated", None) is True
        ):
            keep_float32(module)


def keep_float32(module: nn.Module, method: str = "forward") -> None:
    """Let ``method`` of ``module`` compute in float32 wherever it is called from; parameters and names stay."""
    kind: Any = type(module)
    if kind.__name__.startswith(_PREFIX):
        return
    wide = {method: _in_float32(getattr(kind, method))}
    module.__class__ = type(f"{_PREFIX}{kind.__name__}", (kind,), wide)


def _in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` with its inputs widened, and autocast off inside."""

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        device = next(_tensors((*args, *kwargs.values()))).device.type
        with torch.autocast(device, enabled=False):
            return method(self, *map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})

    return run


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _HALF:
        return value.float()
    if type(value) in (list, tuple):
        return type(value)(map(_wide, value))
    return value
