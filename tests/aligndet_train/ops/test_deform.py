import pytest
import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, deform_conv2d, modulated_deform_conv2d

# kernel, stride, padding, dilation, groups, offset groups
LAYOUTS = [((3, 3), 1, 1, 1, 1, 1), ((3, 2), (2, 1), (1, 0), (1, 2), 2, 1), ((2, 2), 1, 0, 1, 1, 2)]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def by_sampling(read, features, offset, weight, mask, bias, layout):
    (kh, kw), stride, padding, dilation, groups, parts = layout
    (sy, sx), (py, px), (dy, dx) = pair(stride), pair(padding), pair(dilation)
    outputs, channels = weight.shape[0], features.shape[1]
    result = features.new_zeros(features.shape[0], outputs, *offset.shape[2:])
    shift = offset.view(len(offset), parts, kh * kw, 2, *offset.shape[2:])
    rows = []
    for b in range(result.shape[0]):
        for y in range(result.shape[2]):
            for x in range(result.shape[3]):
                taps = []
                for i in range(kh):
                    for j in range(kw):
                        values = []
                        for part in range(parts):
                            maps = features[b].chunk(parts)[part]
                            step = shift[b, part, i * kw + j, :, y, x]
                            at_y, at_x = y * sy - py + i * dy + step[0], x * sx - px + j * dx + step[1]
                            value = read(maps, at_y, at_x)
                            if mask is not None:
                                value = (
                                    value
                                    * mask.view(len(mask), parts, kh * kw, *mask.shape[2:])[
                                        b, part, i * kw + j, y, x
                                    ]
                                )
                            values.append(value)
                        taps.append(torch.cat(values))
                window = torch.stack(taps, dim=1).view(groups, channels // groups, kh, kw)
                kernel = weight.view(groups, outputs // groups, channels // groups, kh, kw)
                rows.append(torch.einsum("gcij,gocij->go", window, kernel).flatten())
    result = torch.stack(rows).view(len(features), *offset.shape[2:], outputs).permute(0, 3, 1, 2)
    return result if bias is None else result + bias[:, None, None]


def out_size(layout, height, width):
    (kh, kw), stride, padding, dilation, *_ = layout
    (sy, sx), (py, px), (dy, dx) = pair(stride), pair(padding), pair(dilation)
    return (height + 2 * py - dy * (kh - 1) - 1) // sy + 1, (width + 2 * px - dx * (kw - 1) - 1) // sx + 1


@pytest.fixture(params=LAYOUTS, ids=["plain", "grouped-strided-dilated", "two-offset-groups"])
def case(request, random):
    layout = request.param
    (kh, kw), *_, groups, parts = layout
    size = out_size(layout, 5, 6)
    features = random(2, 4, 5, 6)
    # Away from whole pixels, where bilinear reading has no derivative.
    offset = random(2, parts * kh * kw * 2, *size, low=0.1, high=0.9)
    mask = random(2, parts * kh * kw, *size, low=0, high=1)
    return layout, features, offset, random(6, 4 // groups, kh, kw), mask, random(6)


def test_deform_conv_by_explicit_sampling(case, same_gradients, pixel_or_zero):
    layout, features, offset, weight, _, _ = case
    _, stride, padding, dilation, groups, parts = layout
    same_gradients(
        lambda x, o, w: deform_conv2d(x, o, w, stride, padding, dilation, groups, parts, False, 1),
        lambda x, o, w: by_sampling(pixel_or_zero, x, o, w, None, None, layout),
        features,
        offset,
        weight,
    )


@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv_by_explicit_sampling(case, same_gradients, pixel_or_zero, with_bias):
    layout, features, offset, weight, mask, bias = case
    geometry = layout[1:]
    leaves = [features, offset, mask, weight, *([bias] if with_bias else [])]
    same_gradients(
        lambda x, o, m, w, b=None: modulated_deform_conv2d(x, o, m, w, b, *geometry),
        lambda x, o, m, w, b=None: by_sampling(pixel_or_zero, x, o, w, m, b, layout),
        *leaves,
    )


def test_offsets_of_a_larger_map_are_read_as_mmcv_reads_memory(random, same_gradients, pixel_or_zero):
    layout = ((3, 3), 1, 1, 1, 1, 1)
    features, weight = random(2, 4, 3, 3), random(6, 4, 3, 3)
    offset, mask = random(2, 18, 5, 6, low=0.1, high=0.9), random(2, 9, 5, 6, low=0, high=1)

    def first(field):
        return field.flatten(1)[:, : field.shape[1] * 9].view(len(field), -1, 3, 3)

    same_gradients(
        lambda x, o, m, w: modulated_deform_conv2d(x, o, m, w, None, *layout[1:]),
        lambda x, o, m, w: by_sampling(pixel_or_zero, x, first(o), w, first(m), None, layout),
        features, offset, mask, weight,
    )  # fmt: skip


def test_only_the_weight_trains(case):
    layout, features, offset, weight, _, _ = case
    weight.requires_grad_()
    args = (*layout[1:], False, 1)
    deform_conv2d(features, offset, weight, *args).sum().backward()
    alone = weight.grad.clone()
    weight.grad = None
    deform_conv2d(features.requires_grad_(), offset.requires_grad_(), weight, *args).sum().backward()
    torch.testing.assert_close(weight.grad, alone)


def test_a_second_backward_through_a_kept_graph_gives_the_same(case):
    layout, features, offset, weight, _, _ = case
    leaves = [leaf.requires_grad_() for leaf in (features, offset, weight)]
    out = deform_conv2d(*leaves, *layout[1:], False, 1).sum()
    first = torch.autograd.grad(out, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(out * 3, leaves), tuple(3 * grad for grad in first))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_in_half_precision(random, dtype, device):
    plain, modulated = (
        DeformConv2d(4, 4, 3, padding=1).to(device),
        ModulatedDeformConv2d(4, 4, 3, padding=1).to(device),
    )
    features = random(2, 4, 5, 5).to(dtype).requires_grad_()
    offset, mask = random(2, 18, 5, 5).to(dtype), random(2, 9, 5, 5).to(dtype)
    for out in (plain(features, offset), modulated(features, offset, mask)):
        assert out.dtype == dtype
        out.sum().backward()
    assert features.grad.isfinite().all()
    assert plain.weight.grad.abs().sum() > 0
    assert modulated.weight.grad.abs().sum() > 0
