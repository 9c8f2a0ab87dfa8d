"""What the names inside a backbone mean, whoever trained it: ResNet, Swin, ViT, MobileNetV2, and any other.

Each family has one set of names here, to which the published ones are brought: torchvision's for ResNet (mmdet and timm
share them), mmdet's for Swin and MobileNetV2, timm's for ViT; others stay as they are.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]
# Of one key: its name here, or the reason why it is not used.
Renamed = tuple[str | None, str]

_RECOMPUTED = "recomputed from the window size"
_MERGE = re.compile(r"\.downsample\.(norm|reduction)\.")


@dataclass(frozen=True)
class Family:
    """mark: a pattern that one key matches. types: mmdet's classes for it. rename: {key: Renamed} of all keys.

    unless: a pattern that no key matches.
    finish: from the file's tensors and the renamed ones, those with the family's values. to_timm: to timm's names.
    """

    name: str
    mark: str
    types: tuple[str, ...]
    rename: Callable[[State], dict[str, Renamed]]
    finish: Callable[[State, State], State] = lambda original, renamed: renamed
    to_timm: Callable[[State], State] = lambda state: state
    unless: str = r"(?!)"

    def describes(self, names: Iterable[str]) -> bool:
        """Whether both patterns say so."""
        listed = list(names)
        marked = any(re.match(self.mark, name) for name in listed)
        return marked and not any(re.match(self.unless, name) for name in listed)


def family_of(names: Iterable[str]) -> Family:
    """The first family one of whose keys is there; the last takes anything."""
    listed = list(names)
    return next((family for family in FAMILIES if family.describes(listed)), FAMILIES[-1])


def canonical(state: State) -> tuple[Family, State, dict[str, Renamed]]:
    """(family, tensors by the family's names, what became of each key). Raises ValueError when two get one name."""
    family = family_of(state)
    renamed = family.rename(state)
    twice = [
        name for name, count in Counter(new for new, _ in renamed.values()).items() if name and count > 1
    ]
    if twice:
        raise ValueError(f"several of its tensors would be {twice[0]}")
    moved = {new: value for key, value in state.items() if (new := renamed[key][0]) is not None}
    return family, family.finish(state, moved), renamed


def _unchanged(state: State) -> dict[str, Renamed]:
    return {name: (name, "") for name in state}


def _merges_as_mmdet(state: State) -> bool:
    return any(".attn.w_msa." in name for name in state)


def _swin(state: State) -> dict[str, Renamed]:
    if _merges_as_mmdet(state):
        renamed = _unchanged(state)
    elif any(name.startswith("layers.") for name in state):
        renamed = {name: (_swin_name(name, _merge_shift(state)), "") for name in state}
    else:
        renamed = {name: (_swin_name(_swin_of_torchvision(name), 0), "") for name in state}
    last = max(
        int(found[1]) for new, _ in renamed.values() if (found := re.match(r"stages\.(\d+)", new or ""))
    )
    for name, (new, _) in renamed.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            renamed[name] = (None, _RECOMPUTED)
        elif new in ("norm.weight", "norm.bias"):
            renamed[name] = (new.replace("norm", f"norm{last}"), "")
    return renamed


def _merge_shift(state: State) -> int:
    """timm merges patches at the beginning of a stage, Microsoft and mmdet at the end of the one before."""
    return 0 if any(name.startswith("layers.0.downsample.") for name in state) else 1


def _swin_name(name: str, shift: int) -> str:
    """mmdet's name of Microsoft's (shift 0) or timm's (shift 1) ``name``."""
    merge = re.match(r"layers\.(\d+)\.(downsample\..*)", name)
    if merge:
        return f"stages.{int(merge[1]) - shift}.{merge[2]}"
    for old, new in (
        ("patch_embed.proj.", "patch_embed.projection."),
        (".attn.", ".attn.w_msa."),
        (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
    ):
        name = name.replace(old, new)
    return re.sub(r"^layers\.", "stages.", name)


def _swin_of_torchvision(name: str) -> str:
    """Microsoft's name of torchvision's: features 0 embeds, then stages (odd) and merges (even) alternate."""
    found = re.match(r"features\.(\d+)\.(.*)", name)
    if not found:
        return name
    number, rest = int(found[1]), found[2]
    if number == 0:
        return re.sub(r"^0\.", "patch_embed.proj.", re.sub(r"^2\.", "patch_embed.norm.", rest))
    if number % 2 == 0:
        return f"layers.{number // 2 - 1}.downsample.{rest}"
    block = rest.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    return f"layers.{number // 2}.blocks.{block}"


def _swin_merges(original: State, renamed: State) -> State:
    if _merges_as_mmdet(original):
        return renamed
    return {name: _swin_merge(name, value) for name, value in renamed.items()}


def _swin_merge(name: str, value: Tensor) -> Tensor:
    """mmdet unfolds the four patches that are merged channel by channel; others concatenate them column by column."""
    if not _MERGE.search(name):
        return value
    patches = value.reshape(*value.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
    return patches.transpose(-1, -2).reshape(value.shape).contiguous()


def _swin_unmerge(name: str, value: Tensor) -> Tensor:
    """The inverse of ``_swin_merge``."""
    if not _MERGE.search(name):
        return value
    patches = value.reshape(*value.shape[:-1], -1, 4).transpose(-1, -2)[..., [0, 2, 1, 3], :]
    return patches.reshape(value.shape).contiguous()


def _swin_to_timm(state: State) -> State:
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"^norm\d+\.", "norm.", name)
        merge = re.match(r"stages\.(\d+)\.(downsample\..*)", new)
        new = f"layers.{int(merge[1]) + 1}.{merge[2]}" if merge else re.sub(r"^stages\.", "layers.", new)
        for theirs, ours in (
            ("patch_embed.proj.", "patch_embed.projection."),
            (".attn.", ".attn.w_msa."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
        ):
            new = new.replace(ours, theirs)
        renamed[new] = _swin_unmerge(name, value)
    return renamed


def _vit(state: State) -> dict[str, Renamed]:
    """DINOv2 numbers blocks inside chunks, calls registers otherwise, and has gated MLPs in its largest model."""
    renamed: dict[str, Renamed] = {}
    for name in state:
        new = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        new = new.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        renamed[name] = ("reg_token" if new == "register_tokens" else new, "")
    return renamed


def _vit_registers(original: State, renamed: State) -> State:
    """DINOv2 with registers gives the class token a position too; timm has it added to the token."""
    if "register_tokens" not in original:
        return renamed
    positions = renamed["pos_embed"]
    return renamed | {"cls_token": renamed["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}


_MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)


def _mobilenet_v2(state: State) -> dict[str, Renamed]:
    if any(name.startswith("conv1.conv.") for name in state):
        return _unchanged(state)
    return {name: (_mobilenet_name(name, state), "") for name in state}


def _mobilenet_name(name: str, state: State) -> str:
    """mmdet's name of torchvision's: features 0 and 18 are convolutions, 1 to 17 inverted residuals in stages."""
    found = re.match(r"features\.(\d+)\.(?:conv\.)?(.*)", name)
    if not found:
        return name
    number, rest = int(found[1]), found[2]
    if number in (0, 18):
        part, parameter = rest.split(".", 1)
        return f"conv{1 if number == 0 else 2}.{('conv', 'bn')[int(part)]}.{parameter}"
    expands = f"features.{number}.conv.3.weight" in state
    layers = ("expand_conv", "depthwise_conv") if expands else ("depthwise_conv",)
    inner = re.match(r"(\d+)\.([01])\.(.*)", rest)
    if inner and int(inner[1]) < len(layers):
        layer, part, parameter = layers[int(inner[1])], int(inner[2]), inner[3]
    else:
        place, parameter = rest.split(".", 1)
        layer, part = "linear_conv", int(place) - len(layers)
    stage, index = _place(number - 1)
    return f"layer{stage + 1}.{index}.{layer}.{('conv', 'bn')[part]}.{parameter}"


def _place(block: int) -> tuple[int, int]:
    for stage, size in enumerate(_MOBILENET_STAGES):
        if block < size:
            return stage, block
        block -= size
    raise KeyError(f"block beyond the {sum(_MOBILENET_STAGES)} of MobileNetV2")


FAMILIES = (
    Family(
        "Swin",
        r"(layers|stages)\.0\.blocks\.0\.attn\.(w_msa\.)?relative_position_bias_table|features\.1\.0\.attn\.qkv\.weight",
        ("SwinTransformer",),
        _swin,
        _swin_merges,
        _swin_to_timm,
        unless=r".*\.logit_scale$",  # Swin v2
    ),
    Family(
        "ViT",
        r"blocks\.(0\.)?0\.attn\.qkv\.weight",
        (),
        _vit,
        _vit_registers,
        unless=r"blocks\.[1-9]\d*\.0\.",  # DINOv2 counts on through its chunks, stages begin anew
    ),
    Family("ResNet", r"layer1\.0\.conv2\.weight", ("ResNet", "ResNeXt", "ResNetV1d"), _unchanged),
    Family(
        "MobileNetV2",
        r"features\.2\.conv\.0\.0\.weight|layer1\.0\.depthwise_conv\.conv\.weight",
        ("MobileNetV2",),
        _mobilenet_v2,
    ),
    Family("other", r"", (), _unchanged),
)
