"""MoCo v2's network: a query encoder, its slow copy for the keys, and a queue of past keys (Chen et al. 2020).

Not as in the paper: keys are normalised by averaged batch statistics (after EMAN, Cai et al. 2021) where MoCo shuffles
the batch over the GPUs, so one GPU is enough and ranks exchange no images; for a short run these follow faster at first
than the weights, as they begin with nothing. Nothing is dropped out of a key. The queue begins empty, not random.
"""

import copy

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn
from torch.nn.functional import normalize

from aligndet_train.image_domain.config import MocoConfig
from aligndet_train.image_domain.model import ImageDomainModel, TwoCropPreprocessor, output_std, pooled
from aligndet_train.losses.moco import moco_loss


class Moco(ImageDomainModel):
    """The first view is the query, the second its key; the keys of past steps are the negatives.

    Buffers: queue [K, D] float32, unit rows; seen [] int64, how many keys were put into it, around its end.
    """

    queue: Tensor
    seen: Tensor

    def __init__(
        self, backbone: nn.Module, channels: int, preprocessor: TwoCropPreprocessor, config: MocoConfig
    ) -> None:
        super().__init__(backbone, preprocessor)
        self.config = config
        self.projector = projector(channels, config.hidden_dims or channels, config.projection_dims)
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(config.queue_size, config.projection_dims))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.train()

    def train(self, mode: bool = True) -> "Moco":
        """As torch's; the key encoder always stays in evaluation mode."""
        super().train(mode)
        self.key_backbone.eval()
        self.key_projector.eval()
        return self

    def losses(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """``loss_moco``; ``key_found``, the share of queries whose key is nearer than the queue; ``output_std``."""
        queries = self.projector(self.features(first))
        keys = self._keys(second)
        # Random rows in place of keys that are yet to come would only teach to give every picture the same output.
        filled = torch.arange(len(self.queue), device=keys.device) < self.seen
        # Backward needs the queue as it was.
        loss, found = moco_loss(queries, keys, self.queue.clone(), filled, self.config.temperature)
        self._enqueue(keys)
        return {"loss_moco": loss, "key_found": found, "output_std": output_std(queries)}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the key encoder towards the query encoder (MoCo v1, eq. 2), its batch statistics faster at first."""
        momentum = self.config.key_momentum
        # Of all steps alike, at first: the weights that they are for lag behind as well.
        of_statistics = min(momentum, (step + 1) / (step + 2))
        for key, query in ((self.key_backbone, self.backbone), (self.key_projector, self.projector)):
            _follow(list(key.parameters()), list(query.parameters()), 1 - momentum)
            _follow(_statistics(key), _statistics(query), 1 - of_statistics)

    @torch.no_grad()
    def _keys(self, views: Tensor) -> Tensor:
        return normalize(self.key_projector(pooled(self.key_backbone(views), views)).float(), dim=1)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Put the keys of all ranks in the place of the oldest."""
        gathered = torch.cat(all_gather(keys))[: len(self.queue)]
        rows = (self.seen + torch.arange(len(gathered), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, gathered)
        self.seen += len(gathered)


def _statistics(encoder: nn.Module) -> list[Tensor]:
    """Those of batches alone: other buffers never change, and may hold infinities, of which an average is none."""
    return [
        value for name, value in encoder.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]


def _follow(values: list[Tensor], targets: list[Tensor], share: float) -> None:
    if values:
        torch._foreach_lerp_(values, targets, share)


def projector(channels: int, hidden: int, out: int) -> nn.Sequential:
    """Two layers without normalisation."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))
