"""Tiny detectors, and batches of real photographs with mined proposals."""

import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import utils

from aligndet_train.box_domain import BoxDomainPretrainer, build_pretrainer
from aligndet_train.config import RunConfig, load_run_config
from aligndet_train.stream import ProposalStream, Sample
from proposals.dataset import open_dataset

TINY = {name: Path(__file__).parents[1] / "configs" / f"tiny_{name}.py" for name in ("fcos", "faster_rcnn")}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors run no faster on more threads, and sums come out in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def modules_are_no_garbage() -> Iterator[None]:
    """mmengine collects garbage for every dataset it opens: a second each, were all that is imported looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def mmdets_configs_are_looked_up_once() -> Iterator[None]:
    """For every `mmdet::` base mmengine reads a hundred files of mmdet's, which do not change meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_get_cfg_metainfo", functools.cache(utils._get_cfg_metainfo))
        yield


@pytest.fixture(params=sorted(TINY))
def run(request: pytest.FixtureRequest) -> RunConfig:
    """The tiny config of each family."""
    return load_run_config(TINY[request.param], {}, {})


@pytest.fixture
def pretrainer(run: RunConfig) -> BoxDomainPretrainer:
    """The family's pretraining model, in train mode."""
    model = build_pretrainer(run.stock_model, run.pretrain)
    model.train()
    return model


@pytest.fixture(scope="session")
def samples(mined_dataset: Path) -> Callable[..., list[Sample]]:
    """``samples(0, 3)``: those images of the mined dataset."""
    stream = ProposalStream(open_dataset(mined_dataset))
    return lambda *indices: [stream[(0, index)] for index in indices]
