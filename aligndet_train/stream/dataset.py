"""The dataset a DataLoader reads: (epoch, index) in, decoded image and its proposals out."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from proposals.dataset import ProposalDataset
from proposals.dataset.clusters import Clusters
from proposals.images import decode_bgr


@dataclass(frozen=True)
class Sample:
    """One image of a step.

    image: [3, H, W] uint8, BGR, upright. boxes: [N, 4] float32 xyxy, its pixels, half-open, best rank first.
    key: its key in the dataset. epoch, index: what its augmentation is seeded with. clusters: [N] int64 from 0, the
    boxes' classes where a detector keeps its class branch; None: all are of one class.
    """

    image: Tensor
    boxes: Tensor
    key: str
    epoch: int
    index: int
    clusters: Tensor | None = None

    @property
    def classes(self) -> Tensor:
        """[N] int64: ``clusters``, or zeros."""
        return torch.zeros(len(self.boxes), dtype=torch.long) if self.clusters is None else self.clusters


class ProposalStream(Dataset[Sample]):
    """Random access into the shards' tars; indexed by the (epoch, index) pairs of a StepSampler.

    proposals_per_image: keep only that many of the best-ranked boxes; None keeps all. clusters: of the dataset's
    boxes, handed out with them; None hands out none.
    """

    # mmengine's visualiser asks every dataset for it.
    metainfo: ClassVar[dict[str, tuple[str, ...]]] = {"classes": ("proposal",)}

    def __init__(
        self,
        dataset: ProposalDataset,
        proposals_per_image: int | None = None,
        clusters: Clusters | None = None,
    ) -> None:
        self.dataset = dataset
        self.proposals_per_image = proposals_per_image
        self._clusters = None if clusters is None else clusters.ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        epoch, index = position
        record = self.dataset[index]
        image = decode_bgr(self.dataset.image_bytes(index)).bgr
        boxes = record.boxes[: self.proposals_per_image]
        return Sample(
            image=torch.from_numpy(image).permute(2, 0, 1),
            boxes=torch.tensor(boxes, dtype=torch.float32),
            key=record.key,
            epoch=epoch,
            index=index,
            clusters=self._classes(index, len(boxes)),
        )

    def _classes(self, index: int, count: int) -> Tensor | None:
        if self._clusters is None:
            return None
        first = self.dataset.first_box(index)
        return torch.from_numpy(self._clusters[first : first + count].astype(np.int64) - 1)
