"""SimCLR's network: encoder and projector; the negatives are the other pictures of the step (Chen et al. 2020)."""

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from torch import Tensor, nn

from aligndet_train.image_domain.config import SimClrConfig
from aligndet_train.image_domain.model import ImageDomainModel, TwoCropPreprocessor, output_std
from aligndet_train.losses.simclr import simclr_loss


class SimClr(ImageDomainModel):
    """Every view [3, S, S] is told from those of all other pictures of the step, on all ranks."""

    def __init__(
        self, backbone: nn.Module, channels: int, preprocessor: TwoCropPreprocessor, config: SimClrConfig
    ) -> None:
        super().__init__(backbone, preprocessor)
        self.config = config
        self.projector = projector(channels, config.hidden_dims or channels, config.projection_dims)

    def losses(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """``loss_simclr``; ``key_found``, the share of views nearest to the other of their picture; ``output_std``.

        Both views go through the network together, so that batch statistics tell none from the other.
        """
        z1, z2 = self.projector(self.features(torch.cat([first, second]))).float().chunk(2)
        loss, found = simclr_loss(_of_all_ranks(z1), _of_all_ranks(z2), self.config.temperature)
        return {"loss_simclr": loss, "key_found": found, "output_std": output_std(z1)}


def _of_all_ranks(rows: Tensor) -> Tensor:
    """[R N, D] float32: ``rows`` [N, D] of all R ranks, in their order; gradients pass through this rank's own.

    Every rank computes the loss of all; its own rows' gradient is then whole, and is scaled by the number of ranks, as
    DistributedDataParallel takes the mean over them.
    """
    ranks = get_world_size()
    if ranks == 1:
        return rows
    gathered = all_gather(rows.detach())
    own = rows.view_as(rows)
    own.register_hook(lambda gradient: gradient * ranks)  # type: ignore[no-untyped-call]
    gathered[get_rank()] = own
    return torch.cat(gathered)


def projector(channels: int, hidden: int, out: int) -> nn.Sequential:
    """[N, channels] -> [N, out]: two layers, batch normalisation between them."""
    return nn.Sequential(
        *(nn.Linear(channels, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        nn.Linear(hidden, out),
    )
