"""The module that answers to ``mmcv._ext``: the ops of this package, and a clear refusal for every other."""

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch

from aligndet_train.ops import attention, deform, focal, masked, nms, roi
from proposals.errors import AlignDetError

NAME = "mmcv._ext"


class MissingOpError(AlignDetError):
    """A compiled mmcv op was called that has no stand-in here."""


def _compiler() -> str:
    return "none (aligndet on torchvision)"


def _cuda() -> str:
    return str(torch.version.cuda)


OPS: dict[str, Callable[..., Any]] = {
    "bbox_overlaps": nms.bbox_overlaps,
    "deform_conv_backward_input": deform.deform_conv_backward_input,
    "deform_conv_backward_parameters": deform.deform_conv_backward_parameters,
    "deform_conv_forward": deform.deform_conv_forward,
    "get_compiler_version": _compiler,
    "get_compiling_cuda_version": _cuda,
    "masked_col2im_forward": masked.masked_col2im_forward,
    "masked_im2col_forward": masked.masked_im2col_forward,
    "modulated_deform_conv_backward": deform.modulated_deform_conv_backward,
    "modulated_deform_conv_forward": deform.modulated_deform_conv_forward,
    "ms_deform_attn_backward": attention.ms_deform_attn_backward,
    "ms_deform_attn_forward": attention.ms_deform_attn_forward,
    "nms": nms.nms,
    "nms_match": nms.nms_match,
    "roi_align_backward": roi.roi_align_backward,
    "roi_align_forward": roi.roi_align_forward,
    "roi_pool_backward": roi.roi_pool_backward,
    "roi_pool_forward": roi.roi_pool_forward,
    "sigmoid_focal_loss_backward": focal.sigmoid_focal_loss_backward,
    "sigmoid_focal_loss_forward": focal.sigmoid_focal_loss_forward,
    "softmax_focal_loss_backward": focal.softmax_focal_loss_backward,
    "softmax_focal_loss_forward": focal.softmax_focal_loss_forward,
    "softnms": nms.softnms,
}


class StandIn(ModuleType):
    """``mmcv._ext`` without a binary: any op can be imported, and only a known one called."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        self.__spec__ = ModuleSpec(NAME, loader=None)
        self.__dict__.update(OPS)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # mmcv checks at import that every op it may ever want exists, so absence shows only in the call.
        if name.startswith("__"):
            raise AttributeError(name)
        return _refusal(name)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise MissingOpError(
            f"mmcv's compiled op '{name}' has no stand-in on torchvision. Choose a config without it, or "
            f"replace mmcv-lite by an mmcv 2.1 compiled for torch {torch.__version__}: it is then used."
        )

    refuse.__name__ = name
    return refuse
