"""The suite runs on the CPU wherever it runs, unless the tests marked gpu are asked for."""

import os

import pytest

from tests.conftest import selects_gpu


@pytest.mark.parametrize(
    ("marks", "selected"),
    [
        ("not slow and not gpu", False),
        ("slow", False),
        ("slow and not gpu", False),
        ("gpu", True),
        ("gpu or slow", True),
        ("gpu and not slow", True),
        ("", True),
    ],
)
def test_gpus_are_seen_only_when_asked_for(marks, selected):
    assert selects_gpu(marks) == selected


def test_torch_and_mmengine_find_no_gpu(pytestconfig):
    if selects_gpu(pytestconfig.option.markexpr):
        pytest.skip("tests marked gpu were asked for, so GPUs are visible")
    torch = pytest.importorskip("torch")
    device = pytest.importorskip("mmengine.device")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert torch.cuda.device_count() == 0
    assert device.get_device() == "cpu"
