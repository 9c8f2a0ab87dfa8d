"""What the methods of the image-domain stage share: two views of a batch, pooled features, figures for the log."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn
from torch.nn.functional import normalize

from aligndet_train.backbones.registry import without_input
from aligndet_train.image_domain.crops import CropSample
from aligndet_train.image_domain.views import ImageView, ImageViewConfig, apply_image_views, draw_two_views
from aligndet_train.preprocess import InputSpec
from aligndet_train.pretraining_model import PretrainingModel, require_losses
from aligndet_train.stream import Sample


class TwoCropPreprocessor(BaseDataPreprocessor):
    """``forward(samples)`` -> ``{"views": (x1, x2)}``, each [B, 3, S, S] float32, normalised, on the device."""

    def __init__(self, spec: InputSpec, config: ImageViewConfig, seed: int) -> None:
        super().__init__()
        self.spec, self.config, self.seed = spec, config, seed
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1), persistent=False)

    def forward(self, data: Sequence[Sample], training: bool = True) -> dict[str, tuple[Tensor, Tensor]]:
        """See the class. ``training`` is mmengine's and changes nothing."""
        images = [sample.image.to(self.mean.device, non_blocking=True) for sample in data]
        views = [view for views in zip(*map(self._drawn, data), strict=True) for view in views]
        first, second = self.normalised(apply_image_views(images, views, self.config.size)).chunk(2)
        return {"views": (first, second)}

    def normalised(self, rgb: Tensor) -> Tensor:
        """What the backbone expects, from ``rgb`` [B, 3, H, W] float32 in [0, 1]."""
        channels = rgb if self.spec.bgr_to_rgb else rgb.flip(1)
        normal: Tensor = (channels * 255 - self.mean) / self.std
        return normal

    def _drawn(self, sample: Sample) -> tuple[ImageView, ...]:
        if isinstance(sample, CropSample):
            return sample.views
        return draw_two_views(self.seed, sample.epoch, sample.index, sample.image, self.config)


class ImageDomainModel(PretrainingModel, ABC):
    """A backbone that learns from two views of every picture, in whatever way a method has for it.

    backbone: any module that returns a sequence of feature maps. Those of find_backbone return the last alone; of one
    that always returns several (HRNet) all count, so that no layer of it is left untrained.
    """

    def __init__(self, backbone: nn.Module, preprocessor: TwoCropPreprocessor) -> None:
        super().__init__(data_preprocessor=preprocessor)
        self.backbone = backbone

    @abstractmethod
    def losses(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """What is logged of a step, ``output_std`` among it; what is named loss is trained on.

        first, second: the views, [B, 3, S, S] float32, normalised.
        """

    def fixed_rate_parameters(self) -> Iterable[nn.Parameter]:
        """Those whose learning rate stays as it begins."""
        return ()

    def after_step(self, step: int) -> None:
        """Called when the optimizer has done ``step``, which counts from 0."""

    def init_weights(self) -> None:
        """Nothing: the backbone came initialised, and the MLPs keep torch's initial weights, as in the papers."""

    def features(self, images: Tensor) -> Tensor:
        """[B, C]: the feature maps of normalised ``images`` [B, 3, H, W], averaged over their cells, side by side."""
        return pooled(self.backbone(images), images)

    def forward(self, views: tuple[Tensor, Tensor], mode: str = "loss") -> dict[str, Tensor]:
        """See losses. Only ``mode="loss"`` exists: a pretraining model predicts nothing."""
        require_losses(mode)
        return self.losses(*views)


def pooled(maps: Sequence[Tensor], images: Tensor) -> Tensor:
    """[B, C]: feature ``maps`` of ``images``, [B, c, h, w] each, averaged over their cells, side by side."""
    return torch.cat([features.mean(dim=(2, 3)) for features in without_input(maps, images)], dim=1)


@torch.no_grad()
def output_std(projections: Tensor) -> Tensor:
    """Mean over components of the deviation of z/|z| over the batch; ``projections`` [B, D] (SimSiam, section 4.1).

    1/sqrt(D) for directions spread evenly, 0 when all are one.
    """
    return normalize(projections.float(), dim=1).std(dim=0).mean()
