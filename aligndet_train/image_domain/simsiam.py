"""SimSiam's network: encoder f (backbone, pooling, projector) and predictor h (Chen & He 2021, section 3)."""

from collections.abc import Iterable

from torch import Tensor, nn

from aligndet_train.image_domain.config import SimSiamConfig
from aligndet_train.image_domain.model import ImageDomainModel, TwoCropPreprocessor, output_std
from aligndet_train.losses.simsiam import simsiam_loss


class SimSiam(ImageDomainModel):
    """Both views through one encoder; the predictor of each is compared with the projection of the other."""

    def __init__(
        self, backbone: nn.Module, channels: int, preprocessor: TwoCropPreprocessor, config: SimSiamConfig
    ) -> None:
        super().__init__(backbone, preprocessor)
        self.config = config
        self.projector = projector(channels, config.hidden_dims, config.projection_dims)
        self.predictor = predictor(config.projection_dims, config.predictor_dims)

    def fixed_rate_parameters(self) -> Iterable[nn.Parameter]:
        """The predictor's: its learning rate stays as it begins (section 4.2)."""
        return self.predictor.parameters()

    def losses(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """``loss_simsiam``, and ``output_std`` of the first view's projections."""
        z1, z2 = (self.projector(self.features(view)) for view in (first, second))
        loss = simsiam_loss(
            (self.predictor(z1), self.predictor(z2)), (z1, z2), stop_gradient=self.config.stop_gradient
        )
        return {"loss_simsiam": loss, "output_std": output_std(z1)}


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
