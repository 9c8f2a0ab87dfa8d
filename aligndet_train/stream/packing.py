"""A batch as three tensors on its way from a worker to the GPU.

A tensor of its own for every image and its boxes costs a file handle, a mapping and a page-locked allocation each, in
the trainer's process: at 256 small images a step that took longer than the network did.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from aligndet_train.stream.dataset import Sample
from proposals.errors import AlignDetError

_TENSORS = ("image", "boxes", "clusters")


@dataclass(frozen=True)
class Shell:
    """What of a sample is no tensor. height, width: px. by_rows: its pixels are [H, W, 3] in memory, not [3, H, W]."""

    kind: type[Sample]
    facts: dict[str, Any]
    height: int
    width: int
    by_rows: bool
    boxes: int


@dataclass(frozen=True)
class PackedSamples:
    """pixels: [P] uint8, all images end to end. boxes: [M, 4] float32. clusters: [M] int64, or None for no clusters."""

    shells: list[Shell]
    pixels: Tensor
    boxes: Tensor
    clusters: Tensor | None

    def pin_memory(self) -> "PackedSamples":
        """The same with its pixels in page-locked memory; DataLoader asks for it."""
        return dataclasses.replace(self, pixels=self.pixels.pin_memory())


def pack(samples: list[Sample]) -> list[Sample] | PackedSamples:
    """A DataLoader's ``collate_fn``: packed in a worker's process, where none is a worker's error; else as they are."""
    if get_worker_info() is None or any(isinstance(sample, AlignDetError) for sample in samples):
        return samples
    shells = [_shell(sample) for sample in samples]
    flat = [
        (sample.image.permute(1, 2, 0) if shell.by_rows else sample.image).flatten()
        for sample, shell in zip(samples, shells, strict=True)
    ]
    clusters = [sample.clusters for sample in samples if sample.clusters is not None]
    return PackedSamples(
        shells,
        torch.cat(flat),
        torch.cat([sample.boxes for sample in samples]),
        torch.cat(clusters) if len(clusters) == len(samples) else None,
    )


def unpack(batch: list[Sample] | PackedSamples, device: torch.device | None) -> list[Sample]:
    """``batch`` as samples. device: where packed pixels go first, in one copy; None: they stay. Boxes always do."""
    if not isinstance(batch, PackedSamples):
        return batch
    pixels = batch.pixels if device is None else batch.pixels.to(device, non_blocking=True)
    counts = [shell.boxes for shell in batch.shells]
    clusters = [None] * len(counts) if batch.clusters is None else torch.split(batch.clusters, counts)
    parts = zip(
        batch.shells,
        torch.split(pixels, [3 * shell.height * shell.width for shell in batch.shells]),
        torch.split(batch.boxes, counts),
        clusters,
        strict=True,
    )
    return [
        shell.kind(image=_image(shell, flat), boxes=boxes, clusters=ids, **shell.facts)
        for shell, flat, boxes, ids in parts
    ]


class SampleLoader(DataLoader[Sample]):
    """Lists of samples, whose pixels come from the workers, and go to the GPU where they are pinned, in one piece.

    Without workers they stay in the host's memory. Takes DataLoader's arguments, but for ``collate_fn``.
    """

    def __init__(self, dataset: Dataset[Sample], **arguments: Any) -> None:
        super().__init__(dataset, collate_fn=pack, **arguments)

    def __iter__(self) -> Any:
        """Batches (lists of samples)."""
        device = torch.device("cuda", torch.cuda.current_device()) if self.pin_memory else None
        return (unpack(batch, device) for batch in super().__iter__())


def _shell(sample: Sample) -> Shell:
    _, height, width = sample.image.shape
    facts = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample) if f.name not in _TENSORS}
    by_rows = sample.image.permute(1, 2, 0).is_contiguous()
    return Shell(type(sample), facts, height, width, by_rows, len(sample.boxes))


def _image(shell: Shell, flat: Tensor) -> Tensor:
    if shell.by_rows:
        return flat.view(shell.height, shell.width, 3).permute(2, 0, 1)
    return flat.view(3, shell.height, shell.width)
