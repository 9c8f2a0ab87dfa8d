"""Batches packed by workers are the samples that went in."""

import dataclasses
import os

import pytest
import torch

from aligndet_train.image_domain.config import image_domain_config
from aligndet_train.image_domain.crops import CropSample, CropStream
from aligndet_train.loader import step_loader, workers_ended
from aligndet_train.stream import ProposalStream, Sample, StreamState
from aligndet_train.stream.packing import PackedSamples, pack, unpack
from proposals.dataset import open_dataset
from proposals.dataset.clusters import Clusters
from proposals.errors import AlignDetError

TENSORS = ("image", "boxes", "clusters")


def samples_of(dataset, samples, workers):
    loader = step_loader(
        dataset, samples, StreamState(0, 0, 0), batch_size=3, steps=4, window=8, workers=workers
    )
    with workers_ended(loader):
        return [sample for batch in loader for sample in batch]


def clustered(dataset):
    boxes = dataset.manifest.totals.proposals
    ids = torch.arange(boxes).remainder(7).add(1).numpy()
    return ProposalStream(dataset, 5, Clusters(7, ids, ids.astype("float32")))


STREAMS = {
    "boxes": lambda dataset: ProposalStream(dataset, 5),
    "clusters": clustered,
    "crops": lambda dataset: CropStream(dataset, image_domain_config({"crops": "proposals"})),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_workers_hand_out_what_the_trainer_would_read(mined_dataset, kind):
    dataset = open_dataset(mined_dataset)
    own, packed = (samples_of(dataset, STREAMS[kind], workers) for workers in (0, 2))
    assert len(own) == len(packed) == 12
    for expected, found in zip(own, packed, strict=True):
        assert type(found) is type(expected) is (CropSample if kind == "crops" else Sample)
        for field in dataclasses.fields(expected):
            mine, theirs = getattr(found, field.name), getattr(expected, field.name)
            if field.name in TENSORS and theirs is not None:
                assert torch.equal(mine.cpu(), theirs)
                assert mine.dtype == theirs.dtype
            else:
                assert mine == theirs
        assert found.image.stride() == expected.image.stride()


def test_why_a_sample_stands_for_another_comes_through_workers(copy):
    os.truncate(copy / "shards" / "00001.tar", 0)
    samples = samples_of(open_dataset(copy), lambda dataset: ProposalStream(dataset, damaged="skip"), 1)
    reasons = [sample.skipped for sample in samples[:8]]
    assert sum("00001.tar" in reason for reason in reasons) == 3, "images of shard 00001, in an epoch of 8"
    assert reasons.count("") == 5


def test_a_batch_is_one_tensor_of_pixels(mined_dataset, monkeypatch):
    monkeypatch.setattr("aligndet_train.stream.packing.get_worker_info", lambda: object())
    stream = ProposalStream(open_dataset(mined_dataset), 5)
    packed = pack([stream[0, index] for index in range(3)])
    assert isinstance(packed, PackedSamples)
    assert packed.pixels.ndim == 1
    images = [sample.image for sample in unpack(packed, None)]
    assert len({image.untyped_storage().data_ptr() for image in images}) == 1


def test_an_error_of_a_worker_is_handed_on(monkeypatch):
    monkeypatch.setattr("aligndet_train.stream.packing.get_worker_info", lambda: object())
    batch = [
        Sample(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(0, 4), "a", 0, 0),
        AlignDetError("broken"),
    ]
    assert unpack(pack(batch), None) is batch
