"""Key layouts as the projects publish them: names and shapes written down here, small where the layout allows it."""

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors, no two alike; counters are integers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(7)
        if name.endswith("num_batches_tracked")
        else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def batch_norm(name: str, width: int) -> Shapes:
    sized = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return sized | {f"{name}.num_batches_tracked": ()}


def linear(name: str, into: int, out: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def resnet50(width: int = 8) -> Shapes:
    """torchvision's ResNet-50 without its classifier; ``width`` 64 is the real one."""
    shapes: Shapes = {"conv1.weight": (width, 3, 7, 7)} | batch_norm("bn1", width)
    into = width
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        inner = width * 2 ** (stage - 1)
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            for number, (a, b, kernel) in enumerate(
                ((into, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1)), start=1
            ):
                shapes |= {f"{at}.conv{number}.weight": (b, a, kernel, kernel)} | batch_norm(
                    f"{at}.bn{number}", b
                )
            if block == 0:
                shapes |= {f"{at}.downsample.0.weight": (4 * inner, into, 1, 1)}
                shapes |= batch_norm(f"{at}.downsample.1", 4 * inner)
            into = 4 * inner
    return shapes


def moco_v2(width: int = 8) -> Shapes:
    head = linear("fc.0", 32 * width, 32 * width) | linear("fc.2", 32 * width, 128)
    query, key = (prefixed(f"module.{name}.", resnet50(width) | head) for name in ("encoder_q", "encoder_k"))
    return query | key | {"module.queue": (128, 64), "module.queue_ptr": (1,)}


def swav(width: int = 8) -> Shapes:
    head = linear("projection_head.0", 32 * width, 64) | batch_norm("projection_head.1", 64)
    head |= linear("projection_head.3", 64, 16) | linear("prototypes", 16, 30, bias=False)
    return prefixed("module.", resnet50(width) | head)


def pixpro(width: int = 8) -> Shapes:
    def mlp(name: str) -> Shapes:
        first = {f"{name}.linear1.weight": (64, 32 * width, 1, 1), f"{name}.linear1.bias": (64,)}
        second = {f"{name}.linear2.weight": (16, 64, 1, 1), f"{name}.linear2.bias": (16,)}
        return first | batch_norm(f"{name}.bn1", 64) | second

    encoders = prefixed("encoder.", resnet50(width)) | prefixed("encoder_k.", resnet50(width))
    transform = {"value_transform.weight": (16, 16, 1, 1), "value_transform.bias": (16,)}
    return prefixed("module.", encoders | mlp("projector") | mlp("projector_k") | transform)


def dino_head(into: int, out: int = 32) -> Shapes:
    layers = linear("mlp.0", into, 24) | linear("mlp.2", 24, 24) | linear("mlp.4", 24, 16)
    return layers | {"last_layer.weight_g": (out, 1), "last_layer.weight_v": (out, 16)}


def vit(width: int = 16, depth: int = 2, patch: int = 16, side: int = 4, layer_scale: bool = False) -> Shapes:
    """DINO's ViT, which has timm's names. side: patches along a side of the training image."""
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, side * side + 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for block in range(depth):
        at = f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
        shapes |= linear(f"{at}.attn.qkv", width, 3 * width) | linear(f"{at}.attn.proj", width, width)
        shapes |= linear(f"{at}.mlp.fc1", width, 4 * width) | linear(f"{at}.mlp.fc2", 4 * width, width)
        if layer_scale:
            shapes |= {f"{at}.ls1.gamma": (width,), f"{at}.ls2.gamma": (width,)}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def dinov2(registers: int = 0, chunked: bool = False) -> Shapes:
    """The released backbones; chunked: as in training, blocks inside the chunk ``blocks.0``."""
    shapes = vit(patch=14, layer_scale=True) | {"mask_token": (1, 16)}
    if registers:
        shapes["register_tokens"] = (1, registers, 16)
    if chunked:
        shapes = {name.replace("blocks.", "blocks.0."): shape for name, shape in shapes.items()}
    return shapes


def swin(width: int = 8, depths: tuple[int, ...] = (1, 1, 2, 1), window: int = 6) -> Shapes:
    """Microsoft's Swin without its classifier; heads 1, 2, 4, 8."""
    shapes: Shapes = {"patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,)}
    shapes |= {"patch_embed.norm.weight": (width,), "patch_embed.norm.bias": (width,)}
    for stage, depth in enumerate(depths):
        size, heads = width * 2**stage, 2**stage
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}"
            for norm in ("norm1", "norm2"):
                shapes |= {f"{at}.{norm}.weight": (size,), f"{at}.{norm}.bias": (size,)}
            shapes |= linear(f"{at}.attn.qkv", size, 3 * size) | linear(f"{at}.attn.proj", size, size)
            shapes |= {f"{at}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads)}
            shapes |= {f"{at}.attn.relative_position_index": (window**2, window**2)}
            shapes |= linear(f"{at}.mlp.fc1", size, 4 * size) | linear(f"{at}.mlp.fc2", 4 * size, size)
            if block % 2:
                shapes[f"{at}.attn_mask"] = (4, window**2, window**2)
        if stage < len(depths) - 1:
            merge = f"layers.{stage}.downsample"
            shapes |= linear(f"{merge}.reduction", 4 * size, 2 * size, bias=False)
            shapes |= {f"{merge}.norm.weight": (4 * size,), f"{merge}.norm.bias": (4 * size,)}
    last = width * 2 ** (len(depths) - 1)
    return shapes | {"norm.weight": (last,), "norm.bias": (last,)}


def simmim() -> Shapes:
    decoder = {"decoder.0.weight": (3072, 64, 1, 1), "decoder.0.bias": (3072,)}
    return prefixed("encoder.", swin() | {"mask_token": (1, 1, 8)}) | decoder
