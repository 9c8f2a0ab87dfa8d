"""Deformable convolution v1 and v2 (Dai et al. 2017, Zhu et al. 2019) on torchvision's kernel.

mmcv passes the geometry by keyword under two spellings, one for each version; offsets are laid out alike
in mmcv and torchvision (y before x for every tap). ``im2col_step`` only bounds mmcv's memory: ignored.
"""

from torch import Tensor

from aligndet_train.ops._kernels import kernels, wide

Geometry = tuple[int, int, int, int, int, int, int, int]


def deform_conv_forward(
    features: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Write into ``output`` [B, O, H', W'] ``features`` [B, C, H, W] sampled at ``offset`` and convolved."""
    output.copy_(_forward(features, weight, offset, None, None, _v1(geometry)))


def deform_conv_backward_input(
    features: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Write the gradients by ``features`` and ``offset``; leave the weight's in the scratch ``columns``."""
    grads = _backward(grad_output, features, weight, offset, None, None, _v1(geometry))
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])
    # torchvision computes all gradients at once, mmcv asks twice: the second call finds its answer here.
    columns.data = grads[1].to(columns.dtype)


def deform_conv_backward_parameters(
    features: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **geometry: int,
) -> None:
    """Add ``scale`` times the weight's gradient to ``grad_weight`` [O, C / group, kH, kW]."""
    known = columns
    if columns.shape != grad_weight.shape:
        known = _backward(grad_output, features, grad_weight, offset, None, None, _v1(geometry))[1]
    grad_weight.add_(known.to(grad_weight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Write into ``output`` [B, O, H', W'] the convolution whose taps ``mask`` also scales."""
    offset, mask = (_places_of(output, field) for field in (offset, mask))
    output.copy_(_forward(features, weight, offset, mask, bias if with_bias else None, _v2(geometry)))


def modulated_deform_conv_backward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Write the gradients by features, weight, offset, mask and, when ``with_bias``, bias."""
    offset, mask = (_places_of(grad_output, field) for field in (offset, mask))
    grads = _backward(grad_output, features, weight, offset, mask, bias if with_bias else None, _v2(geometry))
    # mmcv's own code makes both zero first: what the kernel does not read has no gradient.
    grad_offset, grad_mask = (_places_of(grad_output, field) for field in (grad_offset, grad_mask))
    targets = [grad_input, grad_weight, grad_offset, grad_mask, grad_bias][: 4 + with_bias]
    for target, grad in zip(targets, grads, strict=False):
        target.copy_(grad)


def _places_of(output: Tensor, field: Tensor) -> Tensor:
    """What mmcv's kernel reads of ``field`` [B, C, H, W], as [B, C, H', W'] of ``output``; a view where it can be.

    It walks an image's memory with the sizes of its output. DyHead gives it the offsets of a larger map, so of those it
    reads the first values, whatever they were meant for: its trained weights count on that.
    """
    wanted = output.shape[-2:]
    count = field.shape[1] * wanted.numel()
    if field.shape[-2:] == wanted or field[0].numel() < count:
        return field
    return field.flatten(1)[:, :count].view(len(field), field.shape[1], *wanted)


def _forward(
    features: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    inputs = _operands(features, weight, offset, mask, bias)
    output: Tensor = kernels.deform_conv2d(*inputs, *geometry, mask is not None)
    return output


def _backward(
    grad_output: Tensor,
    features: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by features, weight, offset, mask and bias, in this order."""
    inputs = _operands(features, weight, offset, mask, bias)
    grads: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = kernels._deform_conv2d_backward(
        wide(grad_output).contiguous(), *inputs, *geometry, mask is not None
    )
    return grads


def _operands(
    features: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> list[Tensor]:
    if mask is None:
        mask = features.new_zeros((features.shape[0], 0))
    if bias is None:
        bias = features.new_zeros(weight.shape[0])
    return [wide(tensor).contiguous() for tensor in (features, weight, offset, mask, bias)]


def _v1(named: dict[str, int]) -> Geometry:
    stride, padding, dilation = ((named[f"{axis}H"], named[f"{axis}W"]) for axis in ("d", "pad", "dilation"))
    return (*stride, *padding, *dilation, named["group"], named["deformable_group"])


def _v2(named: dict[str, int]) -> Geometry:
    stride, padding, dilation = (
        (named[f"{axis}_h"], named[f"{axis}_w"]) for axis in ("stride", "pad", "dilation")
    )
    return (*stride, *padding, *dilation, named["group"], named["deformable_group"])
