"""The network's shape, what collapse looks like, and that the monitor tells it from learning."""

import pytest
import torch

from aligndet_train.image_domain.collapse import CollapseMonitor
from aligndet_train.image_domain.crops import CropStream
from aligndet_train.image_domain.model import output_std
from aligndet_train.image_domain.simsiam import predictor, projector
from aligndet_train.image_domain.training import build_optimizer
from proposals.dataset import open_dataset
from tests.aligndet_train.image_domain.conftest import small_simsiam

STEPS, WINDOW = 120, 30


def monitored(dataset, **changes) -> tuple[CollapseMonitor, list[float]]:
    """A short training on a few photographs, under a monitor; the monitor and every step's loss."""
    model, config = small_simsiam(**changes)
    optimizer = build_optimizer(model, config, 1)
    stream = CropStream(open_dataset(dataset), config)
    monitor, losses = CollapseMonitor(config.projection_dims, config.collapse_ratio, WINDOW), []
    for step in range(STEPS):
        batch = [stream[(step * config.batch_size + n, n % 8)] for n in range(config.batch_size)]
        outputs = model(**model.data_preprocessor(batch))
        optimizer.zero_grad()
        outputs["loss_simsiam"].backward()
        optimizer.step()
        monitor.watch(outputs["output_std"])
        losses.append(outputs["loss_simsiam"].item())
        assert step + 1 >= WINDOW or monitor.verdict() is None
    return monitor, losses


def test_the_monitor_is_silent_while_simsiam_learns(mined_dataset):
    monitor, losses = monitored(mined_dataset)
    assert monitor.verdict() is None
    assert losses[-1] < -0.4 < losses[0]


def test_the_monitor_fires_without_the_stop_gradient(mined_dataset):
    monitor, losses = monitored(mined_dataset, stop_gradient=False)
    assert monitor.verdict() is not None
    assert monitor.verdict() < monitor.limit
    assert losses[-1] < -0.85


def test_deviation_of_even_and_of_collapsed_outputs():
    rows = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert output_std(rows).item() == pytest.approx(64**-0.5, rel=0.01)
    assert output_std(rows * 1e-3 + 1).item() < 0.02 * 64**-0.5
    assert output_std(torch.ones(8, 64)).item() == 0


def test_projector_and_predictor_are_the_papers():
    names = [type(layer).__name__ for layer in projector(512, 2048, 2048)]
    assert names == [*("Linear", "BatchNorm1d", "ReLU") * 2, "Linear", "BatchNorm1d"]
    assert not projector(8, 8, 8)[-1].affine
    widths = [
        (layer.in_features, layer.out_features)
        for layer in predictor(2048, 512)
        if hasattr(layer, "in_features")
    ]
    assert widths == [(2048, 512), (512, 2048)]
    assert predictor(8, 4)[-1].bias is not None


def test_the_predictors_rate_stays_and_the_rest_scales_with_the_batch():
    model, config = small_simsiam(batch_size=64, lr=0.05)
    encoder, fixed = build_optimizer(model, config, 2).param_groups
    assert encoder["lr"] == fixed["lr"] == pytest.approx(0.05 * 128 / 256)
    assert (encoder["fixed_rate"], fixed["fixed_rate"]) == (False, True)
    assert {id(p) for p in fixed["params"]} == {id(p) for p in model.predictor.parameters()}
    assert len(encoder["params"]) + len(fixed["params"]) == len(list(model.parameters()))
