"""From a list of samples to two batches a detector takes: views, ids, normalisation and padding, on the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import InstanceData
from torch import Tensor

from aligndet_train.equals.sampling import SAMPLING_SEED
from aligndet_train.stream.dataset import Sample
from aligndet_train.views import View, ViewConfig, apply_view, draw_view, sampling_seed, view_rng
from proposals.errors import AlignDetError


@dataclass(frozen=True)
class InputSpec:
    """How the detector wants its images: what a stock config's ``data_preprocessor`` says."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr_to_rgb: bool
    pad_size_divisor: int

    @classmethod
    def from_stock(cls, data_preprocessor: dict[str, Any]) -> "InputSpec":
        """Read a DetDataPreprocessor config; mmdet's own defaults where it is silent.

        Raises AlignDetError for a pad_size_divisor that is no number from 1 on.
        """
        divisor = data_preprocessor.get("pad_size_divisor", 32)
        if not isinstance(divisor, int) or divisor < 1:
            raise AlignDetError(
                f"data_preprocessor.pad_size_divisor is {divisor!r}: give a number of px, 1 for none"
            )
        return cls(
            mean=tuple(map(float, data_preprocessor.get("mean") or (0.0, 0.0, 0.0))),
            std=tuple(map(float, data_preprocessor.get("std") or (1.0, 1.0, 1.0))),
            # mmdet's loader gives BGR, so either name means: swap.
            bgr_to_rgb=any(data_preprocessor.get(name, False) for name in ("bgr_to_rgb", "rgb_to_bgr")),
            # Stock pipelines that leave it out crop to a fixed size, a multiple of 32; the release pads to that.
            pad_size_divisor=divisor,
        )


FIRST_ID = "first_id"
"""Name, in the metainfo of data samples, of the least id that their image's proposals have."""


class TwoViewPreprocessor(BaseDataPreprocessor):
    """``forward(samples)`` -> ``{"views": ((inputs, data_samples), (inputs, data_samples))}``.

    inputs: [B, 3, H, W] float32, normalised, zero-padded to the canvas: the largest image of the batch, rounded up to
    a multiple of the divisor and of ``canvas_multiple``. A coarser canvas has fewer distinct shapes, for which a GPU
    library plans anew each time; ``pad_shape``, where anchors are valid, does not depend on it.
    data_samples: per image, ``gt_instances`` with ``bboxes`` [M, 4] float32 xyxy pixels of the view, ``labels`` [M]
    int64: the proposals' ids, and ``clusters`` [M] int64, see Sample. Ids run over the batch; row i of an image has
    the same id in both views, and one that a view loses keeps its id reserved.
    """

    def __init__(self, spec: InputSpec, config: ViewConfig, seed: int, canvas_multiple: int = 1) -> None:
        super().__init__()
        self.spec, self.config, self.seed = spec, config, seed
        self._canvas_multiple = math.lcm(spec.pad_size_divisor, canvas_multiple)
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1), persistent=False)

    def forward(self, data: Sequence[Sample], training: bool = True) -> dict[str, Any]:
        """See the class. ``training`` is mmengine's and changes nothing; nor does autocast."""
        first_ids = list(accumulate((len(sample.boxes) for sample in data), initial=0))
        with torch.autocast(self.mean.device.type, enabled=False):
            images = [sample.image.to(self.mean.device, non_blocking=True) for sample in data]
            return {"views": tuple(self._view(data, images, first_ids, number) for number in (0, 1))}

    def _view(
        self, data: Sequence[Sample], images: list[Tensor], first_ids: list[int], number: int
    ) -> tuple[Tensor, list[DetDataSample]]:
        drawn, targets = [], []
        for sample, image, first_id in zip(data, images, first_ids, strict=False):
            rng = view_rng(self.seed, sample.epoch, sample.index, number)
            view = draw_view(rng, sample.image.shape[1], sample.image.shape[2], self.config)
            pixels, boxes, rows = apply_view(image, sample.boxes, view)
            drawn.append(pixels)
            seed = sampling_seed(self.seed, sample.epoch, sample.index, number)
            targets.append(self._target(sample, view, boxes, rows, first_id, seed))
        inputs = self._batch(drawn)
        for target in targets:
            target.set_metainfo({"batch_input_shape": tuple(inputs.shape[-2:])})
        return inputs, targets

    def _target(
        self, sample: Sample, view: View, boxes: Tensor, rows: Tensor, first_id: int, seed: int
    ) -> DetDataSample:
        height, width = sample.image.shape[-2:]
        device, divisor = self.mean.device, self.spec.pad_size_divisor
        target = DetDataSample(
            metainfo={
                "img_id": sample.index,
                "img_path": sample.key,
                FIRST_ID: first_id,
                "ori_shape": (height, width),
                "img_shape": (view.height, view.width),
                "pad_shape": tuple(_rounded_up(side, divisor) for side in (view.height, view.width)),
                "scale_factor": (view.width / width, view.height / height),
                "flip": view.flip,
            }
        )
        target.gt_instances = InstanceData(
            metainfo={SAMPLING_SEED: seed},
            bboxes=boxes.to(device, non_blocking=True),
            labels=(rows + first_id).to(device, non_blocking=True),
            clusters=sample.classes[rows].to(device, non_blocking=True),
        )
        target.ignored_instances = InstanceData(bboxes=boxes.new_zeros((0, 4), device=device))
        return target

    def _batch(self, images: list[Tensor]) -> Tensor:
        height, width = (
            _rounded_up(max(image.shape[axis] for image in images), self._canvas_multiple) for axis in (1, 2)
        )
        batch: Tensor = self.mean.new_zeros((len(images), 3, height, width))
        for row, image in zip(batch, images, strict=True):
            channels = image.flip(0) if self.spec.bgr_to_rgb else image
            row[:, : image.shape[1], : image.shape[2]] = (channels - self.mean) / self.std
        return batch


def _rounded_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
