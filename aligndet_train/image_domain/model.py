"""SimSiam's network: encoder f (backbone, pooling, projector) and predictor h (Chen & He 2021, section 3)."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.nn.functional import normalize

from aligndet_train.backbones.registry import BackboneChoice, build_backbone, output_channels
from aligndet_train.distributed import averaged_figures
from aligndet_train.image_domain.config import ImageDomainConfig
from aligndet_train.image_domain.crops import CropSample
from aligndet_train.image_domain.views import ImageView, ImageViewConfig, apply_image_views, draw_two_views
from aligndet_train.losses.simsiam import simsiam_loss
from aligndet_train.preprocess import InputSpec
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


class SimSiam(BaseModel):
    """Both views through one encoder; the predictor of each is compared with the projection of the other.

    backbone: any module that returns a sequence of feature maps. Those of find_backbone return the last alone; of one
    that always returns several (HRNet) all count, so that no layer of it is left untrained.
    """

    def __init__(
        self, backbone: nn.Module, channels: int, preprocessor: TwoCropPreprocessor, config: ImageDomainConfig
    ) -> None:
        super().__init__(data_preprocessor=preprocessor)
        self.config = config
        self.backbone = backbone
        self.projector = projector(channels, config.hidden_dims, config.projection_dims)
        self.predictor = predictor(config.projection_dims, config.predictor_dims)

    def init_weights(self) -> None:
        """Nothing: the backbone came initialised, and the MLPs keep torch's initial weights, as in the paper."""

    def features(self, images: Tensor) -> Tensor:
        """[B, C]: the feature maps of normalised ``images`` [B, 3, H, W], averaged over their cells, side by side."""
        return torch.cat([features.mean(dim=(2, 3)) for features in self.backbone(images)], dim=1)

    def forward(self, views: tuple[Tensor, Tensor], mode: str = "loss") -> dict[str, Tensor]:
        """Loss, and ``output_std``: the deviation of a projection's components (see collapse).

        Only ``mode="loss"`` exists: a pretraining model predicts nothing.
        """
        if mode != "loss":
            raise ValueError(f"a pretraining model only computes losses, not {mode!r}")
        first, second = (self.projector(self.features(view)) for view in views)
        loss = simsiam_loss(
            (self.predictor(first), self.predictor(second)),
            (first, second),
            stop_gradient=self.config.stop_gradient,
        )
        return {"loss_simsiam": loss, "output_std": output_std(first)}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank, to go back through; and for log and monitors, all figures averaged over the ranks."""
        loss, figures = super().parse_losses(losses)
        return loss, averaged_figures(figures)


@torch.no_grad()
def output_std(projections: Tensor) -> Tensor:
    """Mean over components of the deviation of z/|z| over the batch; ``projections`` [B, D] (section 4.1).

    1/sqrt(D) for directions spread evenly, 0 when all are one.
    """
    return normalize(projections.float(), dim=1).std(dim=0).mean()


def projector(channels: int, hidden: int, out: int) -> nn.Sequential:
    """Three layers, each with batch normalisation, the last of which has no scale, no shift and no ReLU."""
    return nn.Sequential(
        *(nn.Linear(channels, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden, out, bias=False), nn.BatchNorm1d(out, affine=False)),
    )


def predictor(width: int, bottleneck: int) -> nn.Sequential:
    """Two layers with a bottleneck; no normalisation at the output."""
    return nn.Sequential(
        *(nn.Linear(width, bottleneck, bias=False), nn.BatchNorm1d(bottleneck), nn.ReLU(inplace=True)),
        nn.Linear(bottleneck, width),
    )


def build_simsiam(choice: BackboneChoice, config: ImageDomainConfig) -> SimSiam:
    """The model with fresh weights; seeds torch with ``config.seed`` first."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(choice.config)
    preprocessor = TwoCropPreprocessor(choice.inputs, config.views, config.seed)
    return SimSiam(backbone, output_channels(backbone, config.views.size), preprocessor, config)
