import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

SIZES = [[4, 5], [2, 3]]


@pytest.fixture
def inputs(random, device):
    value = random(2, 26, 2, 3)
    locations = random(2, 3, 2, 2, 2, 2, low=-0.1, high=1.1)
    weights = random(2, 3, 2, 2, 2, low=0, high=1)
    sizes = torch.tensor(SIZES, device=device)
    starts = torch.tensor([0, 20], device=device)
    return value, sizes, starts, locations, weights


def by_loops(read, value, locations, weights):
    batch, queries, heads, levels, points = weights.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                total, start = 0, 0
                for level, (height, width) in enumerate(SIZES[:levels]):
                    maps = value[b, start : start + height * width, m].T.reshape(-1, height, width)
                    start += height * width
                    for p in range(points):
                        x, y = locations[b, q, m, level, p]
                        sample = read(maps, y * height - 0.5, x * width - 0.5)
                        total = total + weights[b, q, m, level, p] * sample
                rows.append(total)
    return torch.stack(rows).view(batch, queries, -1)


def test_attention_by_loops(inputs, same_gradients, pixel_or_zero):
    value, sizes, starts, locations, weights = inputs
    same_gradients(
        lambda v, x, w: MultiScaleDeformableAttnFunction.apply(v, sizes, starts, x, w, 64),
        lambda v, x, w: by_loops(pixel_or_zero, v, x, w),
        value,
        locations,
        weights,
    )


def test_attention_passes_gradcheck(inputs):
    value, sizes, starts, locations, weights = inputs
    assert torch.autograd.gradcheck(
        lambda v, x, w: MultiScaleDeformableAttnFunction.apply(v, sizes, starts, x, w, 64),
        (value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()),
        nondet_tol=1e-12,
    )


def test_the_wrappers_cpu_formula_agrees(inputs):
    value, sizes, starts, locations, weights = inputs
    torch.testing.assert_close(
        MultiScaleDeformableAttnFunction.apply(value, sizes, starts, locations, weights, 64),
        multi_scale_deformable_attn_pytorch(value, sizes, locations, weights),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values(inputs, dtype):
    value, sizes, starts, locations, weights = inputs
    rough = value.to(dtype).requires_grad_()
    out = MultiScaleDeformableAttnFunction.apply(rough, sizes, starts, locations.float(), weights.float(), 64)
    out.sum().backward()
    assert out.dtype == rough.grad.dtype == dtype
    assert rough.grad.isfinite().all()
