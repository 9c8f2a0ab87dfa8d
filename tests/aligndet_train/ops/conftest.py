"""Fixtures of the op tests: every check runs on the CPU, and on CUDA under the `gpu` mark."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aligndet_train.ops import install

install()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def random(device: torch.device) -> Callable[..., Tensor]:
    """Uniform float64 numbers in [low, high), the same on every device."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        numbers = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * numbers).to(device)

    return draw


@pytest.fixture
def pixel_or_zero() -> Callable[[Tensor, float, float], Tensor]:
    """Bilinear reading of maps [C, H, W] at (y, x), pixels beyond the edge being 0: differentiable by all."""

    def read(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
        total = maps.new_zeros(maps.shape[0])
        for row in (int(y.floor()), int(y.floor()) + 1):
            for column in (int(x.floor()), int(x.floor()) + 1):
                if 0 <= row < maps.shape[1] and 0 <= column < maps.shape[2]:
                    total = total + (1 - (y - row).abs()) * (1 - (x - column).abs()) * maps[:, row, column]
        return total

    return read


@pytest.fixture
def same_gradients() -> Callable[..., None]:
    """Assert that two functions agree on the given leaves in value and in the gradient of a weighted sum."""

    def check(actual: Callable[..., Tensor], wanted: Callable[..., Tensor], *leaves: Tensor) -> None:
        results = []
        for function in (actual, wanted):
            inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
            output = function(*inputs)
            ramp = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
            (output * ramp.view_as(output)).sum().backward()
            results.append([output.detach(), *(given.grad for given in inputs)])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)

    return check
