"""The reference that benchmarks/step.py compares with: AlignDet's step put together in the plain way.

Two whole detectors, each with a backbone of its own, in float32; two views of every image made on the CPU by mmdet's
transforms, in the loader's processes; the contrastive loss as a loop over ids; the teacher moved parameter by
parameter. It is written for this comparison after the paper (two images a step), and is not the authors' code.
"""

import copy
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from aligndet_train.box_domain import build_detector
from aligndet_train.config import RunConfig, head_type
from aligndet_train.detectors import BACKGROUND, adapter_for
from aligndet_train.stream import ProposalStream, StepSampler, StreamState
from benchmarks.contrastive import loop_over_ids
from proposals.dataset import ProposalDataset

COLOURS = (
    "AutoContrast",
    "Equalize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "Posterize",
)


def transforms(run: RunConfig) -> list[dict[str, Any]]:
    """The released recipe of a view, in mmdet's words."""
    config = run.pretrain.views
    colours = [[{"type": name, "prob": 1.0}] for name in COLOURS]
    return [
        {
            "type": "RandomChoiceResize",
            "scales": [(config.long_side, side) for side in config.short_sides],
            "keep_ratio": True,
        },
        {"type": "RandomFlip", "prob": config.flip_probability},
        {"type": "RandomChoice", "transforms": [[{"type": "RandomFlip", "prob": 0.0}], *colours]},
        {"type": "PackDetInputs", "meta_keys": ("img_shape", "scale_factor", "ori_shape")},
    ]


class TwoViews(Dataset[list[dict[str, Any]]]):
    """Two transformed copies of a sample."""

    def __init__(self, dataset: ProposalDataset, run: RunConfig) -> None:
        self.stream = ProposalStream(dataset, run.pretrain.proposals_per_image)
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.steps = [TRANSFORMS.build(step) for step in transforms(run)]

    def __getitem__(self, position: tuple[int, int]) -> list[dict[str, Any]]:
        sample = self.stream[position]
        return [self._view(sample) for _ in range(2)]

    def _view(self, sample: Any) -> dict[str, Any]:
        image = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        results: dict[str, Any] = {
            "img": image,
            "img_shape": image.shape[:2],
            "ori_shape": image.shape[:2],
            "gt_bboxes": HorizontalBoxes(sample.boxes.clone()),
            "gt_bboxes_labels": np.arange(len(sample.boxes)),
            "gt_ignore_flags": np.zeros(len(sample.boxes), dtype=bool),
        }
        for step in self.steps:
            results = step(results)
        return results


class ReferenceStep:
    """One object with ``loader`` and ``step``, as the benchmark measures ours."""

    def __init__(self, run: RunConfig, device: str) -> None:
        stock = run.stock_model
        self.adapter = adapter_for(stock["type"], head_type(stock))
        self.config = run.pretrain
        self.student: Any = build_detector(stock)
        self.student.init_weights()
        self.adapter.convert(self.student, run.pretrain.embed_dims)
        self.student.backbone.requires_grad_(False)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        with DefaultScope.overwrite_default_scope("mmdet"):
            preprocessor = {"type": "DetDataPreprocessor", **stock["data_preprocessor"]}
            self.preprocessor: Any = MODELS.build(preprocessor).to(device)
        for model in (self.student, self.teacher):
            model.to(device).train()
            model.backbone.eval()
        trainable = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trainable, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def loader(self, dataset: ProposalDataset, run: RunConfig, steps: int, workers: int) -> Any:
        """Batches of two views, made in ``workers`` processes."""
        sampler = StepSampler(
            dataset.shard_sizes.tolist(),
            start=StreamState(0, 0, 0),
            batch_size=run.pretrain.batch_size,
            steps=steps,
        )
        return DataLoader(TwoViews(dataset, run), batch_sampler=sampler, num_workers=workers, collate_fn=list)

    def step(self, batch: list[list[dict[str, Any]]]) -> Tensor:
        """One optimiser step; returns the loss."""
        first, second = (self._prepared([views[number] for views in batch]) for number in (0, 1))
        losses = self.student.loss(first["inputs"], first["data_samples"])
        query = self.adapter.read(self.student)[-1]
        with torch.no_grad():
            self.teacher.loss(second["inputs"], second["data_samples"])
            key = self.adapter.read(self.teacher)[-1]
        assert query is not None
        assert key is not None
        total = _total({name: value for name, value in losses.items() if self.adapter.keeps(name)})
        (q, query_ids), (k, key_ids) = self._sampled(query), self._sampled(key)
        loss: Tensor = total + loop_over_ids(q, k, query_ids, key_ids)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip_grad:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_grad)
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                old.mul_(0.996).add_(new, alpha=0.004)
        return loss.detach()

    def _prepared(self, views: list[dict[str, Any]]) -> dict[str, Any]:
        """Normalised and padded by mmdet, ids numbered over the batch."""
        samples, first = [], 0
        for view in views:
            sample = copy.deepcopy(view["data_samples"])
            sample.gt_instances.labels = sample.gt_instances.labels + first
            first += 10_000
            samples.append(sample)
        data = {"inputs": [view["inputs"] for view in views], "data_samples": samples}
        prepared: dict[str, Any] = self.preprocessor(data, training=True)
        return prepared

    def _sampled(self, reading: Any) -> tuple[Tensor, Tensor]:
        """At most ``sampled_boxes``, positives first."""
        limit = self.config.sampled_boxes or len(reading.ids)
        order = (reading.ids == BACKGROUND).to(torch.int8).argsort(stable=True)[:limit]
        ids = reading.ids[order]
        return reading.embeddings[order], torch.where(ids == BACKGROUND, -1, ids)


def _total(losses: dict[str, Any]) -> Tensor:
    values = [sum(v) if isinstance(v, list) else v for name, v in losses.items() if "loss" in name]
    return torch.stack([value.mean() for value in values]).sum()
