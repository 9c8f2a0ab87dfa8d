"""What views are drawn from: whole images, or single proposals, so that a scene gives object-centric pictures."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from aligndet_train.image_domain.config import ImageDomainConfig
from aligndet_train.image_domain.views import ImageView, draw_two_views
from aligndet_train.stream import ProposalStream, Sample
from aligndet_train.stream.dataset import Damaged
from aligndet_train.views import view_rng
from proposals.dataset import ProposalDataset
from proposals.errors import AlignDetError
from proposals.images import resize_max_side

# Beside the two views' own 0 and 1, see view_rng.
_CROP_DRAW = 2


@dataclass(frozen=True)
class CropSample(Sample):
    """A sample without boxes. views: the transforms of its two views, drawn where it was decoded."""

    views: tuple[ImageView, ...] = ()


class CropStream(Dataset[Sample]):
    """ProposalStream's samples, cut to a proposal where the config says so, at most ``max_side`` px long.

    Which proposal is a function of (seed, epoch, index). Indexed by the (epoch, index) pairs of a StepSampler.
    damaged: see ProposalStream.
    """

    # mmengine's visualiser asks every dataset for it.
    metainfo: ClassVar[dict[str, tuple[str, ...]]] = {"classes": ("image",)}

    def __init__(
        self, dataset: ProposalDataset, config: ImageDomainConfig, damaged: Damaged = "raise"
    ) -> None:
        self.stream = ProposalStream(dataset, config.proposals_per_image, damaged=damaged)
        self.config = config

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        sample = self.stream[position]
        if isinstance(sample, AlignDetError):  # on its way from a worker to the trainer, see ProposalStream
            return sample
        image = sample.image
        if self.config.crops == "proposals":
            epoch, index = position
            rng = view_rng(self.config.seed, epoch, index, _CROP_DRAW)
            left, top, right, bottom = drawn_crop(rng, sample, self.config)
            image = image[:, top:bottom, left:right]
        image = shrunk(image, self.config.max_side)
        # On the trainer's own processor two draws an image would take longer than the network's step on a GPU.
        views = draw_two_views(self.config.seed, sample.epoch, sample.index, image, self.config.views)
        return CropSample(
            image=image,
            boxes=sample.boxes[:0],
            key=sample.key,
            epoch=sample.epoch,
            index=sample.index,
            skipped=sample.skipped,
            views=views,
        )


def drawn_crop(
    rng: np.random.Generator, sample: Sample, config: ImageDomainConfig
) -> tuple[int, int, int, int]:
    """xyxy px, half-open: one of the sample's boxes with its context; the whole image when none is large enough."""
    height, width = sample.image.shape[-2:]
    boxes = sample.boxes.numpy()
    sides = boxes[:, 2:] - boxes[:, :2]
    usable = np.flatnonzero((sides >= config.min_crop).all(axis=1))
    if len(usable) == 0:
        return 0, 0, width, height
    chosen = int(rng.choice(usable))
    margin = sides[chosen] * config.crop_context / 2
    left, top = np.floor(np.maximum(boxes[chosen, :2] - margin, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(boxes[chosen, 2:] + margin, (width, height))).astype(int)
    return int(left), int(top), int(right), int(bottom)


def shrunk(image: Tensor, max_side: int) -> Tensor:
    """``image`` [3, H, W] uint8, its long side at most ``max_side`` px, in memory of its own."""
    if max(image.shape[-2:]) <= max_side:
        return image.clone(memory_format=torch.contiguous_format)
    small, _, _ = resize_max_side(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), max_side)
    return torch.from_numpy(small).permute(2, 0, 1).contiguous()
