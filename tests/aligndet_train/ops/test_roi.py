import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import roi_align, roi_pool, sigmoid_focal_loss, softmax_focal_loss

from aligndet_train.ops import roi_kernel
from aligndet_train.ops._kernels import kernels

ROIS = [
    [0, 1.3, 2.1, 7.9, 9.2],
    [1, -2.0, -1.0, 4.0, 5.5],  # over the edge
    [1, 3.2, 3.3, 3.6, 3.9],  # smaller than a pixel
    [0, 6.0, 1.0, 14.0, 12.0],
]


def bilinear(maps, y, x):
    height, width = maps.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return maps.new_zeros(maps.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (
        maps[:, top, left] * (1 - down) * (1 - across)
        + maps[:, top, right] * (1 - down) * across
        + maps[:, bottom, left] * down * (1 - across)
        + maps[:, bottom, right] * down * across
    )


def align_by_loops(features, rois, size, scale, ratio, mode, aligned):
    boxes = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        step_y, step_x = height / size[0], width / size[1]
        many_y, many_x = ratio or math.ceil(step_y), ratio or math.ceil(step_x)
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [
                    bilinear(
                        features[int(image)],
                        y1 + (i + (a + 0.5) / many_y) * step_y,
                        x1 + (j + (b + 0.5) / many_x) * step_x,
                    )
                    for a in range(many_y)
                    for b in range(many_x)
                ]
                stacked = torch.stack(samples)
                boxes.append(stacked.mean(0) if mode == "avg" else stacked.amax(0))
    return torch.stack(boxes).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def pool_by_loops(features, rois, size, scale):
    out = []
    for image, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        step_y, step_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
        for i in range(size[0]):
            for j in range(size[1]):
                top, bottom = math.floor(y1 + i * step_y), math.ceil(y1 + (i + 1) * step_y)
                left, right = math.floor(x1 + j * step_x), math.ceil(x1 + (j + 1) * step_x)
                window = features[int(image), :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
                out.append(window.amax((1, 2)) if window.numel() else features.new_zeros(features.shape[1]))
    return torch.stack(out).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.fixture
def rois(device):
    return torch.tensor(ROIS, dtype=torch.float64, device=device)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_by_loops(random, rois, same_gradients, mode, aligned, ratio):
    size, scale = (2, 3), 0.75
    same_gradients(
        lambda x: roi_align(x, rois, size, scale, ratio, mode, aligned),
        lambda x: align_by_loops(x, rois, size, scale, ratio, mode, aligned),
        random(2, 3, 10, 12),
    )


def test_roi_align_passes_gradcheck(random, rois):
    features = random(2, 1, 6, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, (2, 2), 0.5, 2, "avg", True), (features,), nondet_tol=1e-12
    )


def test_roi_pool_by_loops(random, rois, same_gradients):
    same_gradients(
        lambda x: roi_pool(x, rois, (2, 3), 0.5),
        lambda x: pool_by_loops(x, rois, (2, 3), 0.5),
        random(2, 3, 7, 8),
    )


def test_a_pool_bin_outside_the_image_is_zero_without_gradient(random, device):
    features = random(1, 2, 4, 4).requires_grad_()
    out = roi_pool(features, torch.tensor([[0.0, 20, 20, 30, 30]], dtype=torch.float64, device=device), 2)
    out.sum().backward()
    assert out.eq(0).all()
    assert features.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["avg", "max", "pool"])
def test_half_precision_is_the_float32_answer_rounded(random, rois, dtype, op):
    base = random(2, 3, 10, 12).to(dtype)

    def apply(features):
        if op == "pool":
            return roi_pool(features, rois.float(), (2, 2), 0.5)
        return roi_align(features, rois.float(), (2, 2), 0.5, 2, op, True)

    rough, exact = base.clone().requires_grad_(), base.float().requires_grad_()
    for features in (rough, exact):
        apply(features).sum().backward()
    assert apply(rough).dtype == dtype
    torch.testing.assert_close(apply(rough), apply(exact).to(dtype))
    torch.testing.assert_close(rough.grad, exact.grad.to(dtype))


def test_under_autocast(random, rois, device):
    features = random(2, 3, 10, 12).float().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mixed = torch.nn.functional.conv2d(features, torch.ones(3, 3, 1, 1, device=device))
        out = roi_align(mixed, rois.float(), (2, 2), 0.5, 0, "avg", True)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert features.grad.isfinite().all()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_no_boxes_is_no_output(random, device, mode):
    features = random(1, 3, 4, 4).requires_grad_()
    rois = torch.zeros(0, 5, dtype=torch.float64, device=device)
    for out in (roi_align(features, rois, 2, 1.0, 0, mode, True), roi_pool(features, rois, 2)):
        assert out.shape == (0, 3, 2, 2)
        out.sum().backward()
    assert features.grad.eq(0).all()


_CORNER = st.floats(-40, 140, width=32)
_BOXES = st.lists(st.tuples(st.integers(0, 1), _CORNER, _CORNER, _CORNER, _CORNER), max_size=12)


def boxes_of(rows):
    """Also boxes off the map, and without an area; none that ends before it begins, which torchvision cannot take."""
    drawn = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    (left, right), (top, bottom) = (drawn[:, [axis, axis + 2]].sort(dim=1).values.T for axis in (1, 2))
    return torch.stack([drawn[:, 0], left, top, right, bottom], dim=1)


@settings(deadline=None)
@given(
    _BOXES,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.sampled_from([0.125, 0.25, 1.0]),
    st.integers(0, 3),
    st.booleans(),
)
def test_the_kernels_of_the_cpu_give_what_torchvisions_do(rows, size, bins, scale, ratio, aligned):
    rois, generator = boxes_of(rows), torch.Generator().manual_seed(0)
    features = torch.rand(2, 3, *size, generator=generator)
    grid = roi_kernel.Grid(*bins, scale, ratio, aligned)
    ours = roi_kernel.align(features, rois, grid)
    torch.testing.assert_close(
        ours, kernels.roi_align(features, rois, scale, *bins, ratio, aligned), rtol=1e-4, atol=1e-5
    )
    gradient = torch.rand(ours.shape, generator=generator)
    torch.testing.assert_close(
        roi_kernel.align_gradient(gradient, rois, features.shape, grid),
        kernels._roi_align_backward(gradient, rois, scale, *bins, *features.shape, ratio, aligned),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_of_the_cpu_change_no_bit(random, threads):
    if random(1).device.type != "cpu":
        pytest.skip("of the CPU's kernels")
    features, gradient = random(2, 50, 9, 8).float(), random(len(ROIS), 50, 7, 7).float()
    grid, rois = roi_kernel.Grid(7, 7, 0.5, 0, True), torch.tensor(ROIS)
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            aligned = roi_kernel.align(features, rois, grid)
            results.append((aligned, roi_kernel.align_gradient(gradient, rois, features.shape, grid)))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert one.abs().sum() > 0
        assert torch.equal(one, many)


@pytest.mark.parametrize("shape", [(1, 3, 0, 5), (1, 3, 5, 0), (1, 0, 5, 5)])
def test_a_map_without_pixels_gives_nothing(shape):
    features = torch.rand(shape, requires_grad=True)
    out = roi_align(features, torch.tensor([[0, 0.0, 0.0, 2.0, 2.0]]), 2, 1.0, 2, "avg", True)
    _assert_nothing(features, out)
    assert out.shape == (1, shape[1], 2, 2)


@pytest.mark.parametrize("image", [-1, 2, math.nan])
def test_a_box_of_an_image_that_is_not_there_is_refused(image):
    features = torch.rand(2, 3, 4, 4)
    rois = torch.tensor([[image, 0.0, 0.0, 2.0, 2.0]])
    with pytest.raises(IndexError, match=f"images {image} to {image}, where the features are of 2"):
        roi_align(features, rois, 2, 1.0, 0, "avg", True)


@pytest.mark.parametrize("corner", [math.nan, math.inf, -math.inf, 1e30])
def test_a_box_without_numbers_writes_nowhere(corner):
    features = torch.rand(1, 3, 4, 4, requires_grad=True)
    rois = torch.tensor([[0, 0.0, corner, 2.0, 2.0]])
    _assert_nothing(features, roi_align(features, rois, 2, 1.0, 2, "avg", True))


@pytest.mark.parametrize("end", [1e4, 1e9, 1e13])
def test_only_the_part_of_a_huge_box_that_lies_on_the_map_takes_time(end):
    features = torch.ones(1, 3, 4, 4, requires_grad=True)
    rois = torch.tensor([[0, 0.0, 0.0, end, end]])
    out = roi_align(features, rois, 1, 1.0, 0, "avg", True)
    out.sum().backward()
    torch.testing.assert_close(out, torch.full_like(out, (4.5 / end) ** 2), rtol=0.3, atol=1e-12)


def test_a_box_that_ends_before_it_begins_is_empty():
    features = torch.rand(1, 3, 4, 4, requires_grad=True)
    rois = torch.tensor([[0, 3.0, 3.0, 1.0, 0.0]])
    _assert_nothing(features, roi_align(features, rois, 2, 1.0, 0, "avg", True))


def _assert_nothing(features, out):
    out.sum().backward()
    assert out.eq(0).all()
    assert features.grad.eq(0).all()


@pytest.mark.gpu
def test_the_training_ops_never_wait_for_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    features = torch.rand(2, 8, 16, 16, device="cuda", requires_grad=True)
    rois = torch.tensor(ROIS, device="cuda")
    logits = torch.rand(6, 4, device="cuda", requires_grad=True)
    target = torch.tensor([0, 2, 4, 3, 1, 4], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        roi_align(features, rois, (7, 7), 0.5, 0, "avg", True).sum().backward()
        sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum").backward()
        softmax_focal_loss(logits, target.remainder(4), 2.0, 0.25, None, "sum").backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
