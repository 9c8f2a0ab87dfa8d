"""The dataset a DataLoader reads: (epoch, index) in, decoded image and its proposals out."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from aligndet_train.stream.cache import FetchFailedError
from proposals.dataset import ProposalDataset
from proposals.dataset.as_mined import decoded_as_mined
from proposals.dataset.clusters import Clusters
from proposals.errors import AlignDetError, UnansweredError
from proposals.images import ImageRejected

Damaged = Literal["raise", "skip"]
_REPLACEMENTS = 8
# Of a store or a cache: they say nothing of the dataset.
_NO_DAMAGE = (FetchFailedError, UnansweredError)


@dataclass(frozen=True)
class Sample:
    """One image of a step.

    image: [3, H, W] uint8, BGR, upright. boxes: [N, 4] float32 xyxy, its pixels, half-open, best rank first.
    key: its key in the dataset. epoch, index: what its augmentation is seeded with. clusters: [N] int64 from 0, the
    boxes' classes where a detector keeps its class branch; None: all are of one class.
    skipped: why this sample stands for another, which cannot be read; empty when it is the one that was asked for.
    """

    image: Tensor
    boxes: Tensor
    key: str
    epoch: int
    index: int
    clusters: Tensor | None = None
    skipped: str = ""

    @property
    def classes(self) -> Tensor:
        """[N] int64: ``clusters``, or zeros."""
        return torch.zeros(len(self.boxes), dtype=torch.long) if self.clusters is None else self.clusters

    def pin_memory(self) -> "Sample":
        """The same in page-locked memory, from which a GPU copies while the host goes on; DataLoader asks for it."""
        rows = self.image.permute(1, 2, 0)
        return dataclasses.replace(self, image=rows.pin_memory().permute(2, 0, 1))


class ProposalStream(Dataset[Sample]):
    """Random access into the shards' tars; indexed by the (epoch, index) pairs of a StepSampler.

    proposals_per_image: keep only that many of the best-ranked boxes; None keeps all. clusters: of the dataset's
    boxes, handed out with them; None hands out none. damaged: what to do about a sample that cannot be read.
    ``raise`` raises AlignDetError (a DataLoader's worker hands it out in place of the sample: see ``readable``);
    ``skip`` hands out another image of the same dataset, a function of the index, that says why. What could not be
    fetched or is not answered is no damage: FetchFailedError or UnansweredError, whatever is chosen.
    """

    # mmengine's visualiser asks every dataset for it.
    metainfo: ClassVar[dict[str, tuple[str, ...]]] = {"classes": ("proposal",)}

    def __init__(
        self,
        dataset: ProposalDataset,
        proposals_per_image: int | None = None,
        clusters: Clusters | None = None,
        damaged: Damaged = "raise",
    ) -> None:
        self.dataset = dataset
        self.damaged = damaged
        self.proposals_per_image = proposals_per_image
        self._clusters = None if clusters is None else clusters.ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        epoch, index = position
        try:
            return self._readable(epoch, index)
        except AlignDetError as error:
            if get_worker_info() is None:
                raise
            # Raised in a worker it would reach the trainer as a traceback in a string.
            return cast(Sample, error)

    def _readable(self, epoch: int, index: int) -> Sample:
        """The sample that is asked for, or another where it is damaged and may be skipped."""
        try:
            return self._sample(epoch, index)
        except _NO_DAMAGE:
            raise
        except AlignDetError as error:
            if self.damaged == "raise":
                raise
            return self._another(epoch, index, error)

    def _sample(self, epoch: int, index: int) -> Sample:
        record = self.dataset[index]
        try:
            limit = self.dataset.manifest.recipe.max_pixels
            image = decoded_as_mined(record, self.dataset.image_bytes(index), limit).bgr
        except ImageRejected as error:
            raise AlignDetError(
                f"image {record.key} of {self.dataset.root} cannot be decoded: {error}. The dataset is damaged"
            ) from error
        boxes = record.boxes[: self.proposals_per_image]
        return Sample(
            image=torch.from_numpy(image).permute(2, 0, 1),
            boxes=torch.tensor(boxes, dtype=torch.float32),
            key=record.key,
            epoch=epoch,
            index=index,
            clusters=self._classes(index, len(boxes)),
        )

    def _another(self, epoch: int, index: int, error: AlignDetError) -> Sample:
        """The first readable image half the dataset away, a third, a quarter ...: mostly of another shard."""
        steps = _steps(len(self))
        for step in steps:
            other = (index + step) % len(self)
            try:
                return dataclasses.replace(self._sample(epoch, other), skipped=str(error))
            except _NO_DAMAGE:
                raise
            except AlignDetError:
                continue
        raise AlignDetError(
            f"neither image {index} of {self.dataset.root} nor {len(steps)} others in its place can be read: {error}"
        )

    def _classes(self, index: int, count: int) -> Tensor | None:
        if self._clusters is None:
            return None
        first = self.dataset.first_box(index)
        return torch.from_numpy(self._clusters[first : first + count].astype(np.int64) - 1)


def readable(batch: list[Sample]) -> list[Sample]:
    """``batch`` as it is; raises the error that a worker handed out in place of a sample."""
    for sample in batch:
        if isinstance(sample, AlignDetError):
            raise sample
    return batch


def _steps(images: int) -> list[int]:
    """From one of ``images`` to those that may stand in for it: half of them on, a third ..., then the next ones."""
    parts = [images // part for part in range(2, 2 + _REPLACEMENTS)]
    near = range(1, min(images, 1 + _REPLACEMENTS))
    return [step for step in dict.fromkeys([*parts, *near]) if step][:_REPLACEMENTS]
