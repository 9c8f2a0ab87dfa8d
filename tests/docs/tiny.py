"""The `aligndet` that the pages' shell blocks find: the real one, with sizes that a test on two cores can afford.

What is changed, and nothing else:

- `pretrain`: 2 steps of 2 images, no worker processes, views of 96-128 px, 256 sampled boxes. `--detector fcos`,
  `faster_rcnn`, `retinanet` and `detr` become tests/configs/tiny_*.py; a config of the page's own stays and starts
  from random weights instead of a download (`model.backbone.init_cfg=None`).
- `pretrain-backbone`: 3 steps of 4 images, views of 24 px, narrow layers; `--backbone resnet50` is tiny_fcos's.
- `finetune`: 1 epoch, batches of 4, images of 128x96, learning rate 0.01, no worker processes; detectors as above.
- `evaluate`: images of 128x96, no worker processes; `epoch_12.pth` becomes `epoch_1.pth`.
- `regions`: short side 96, one worker.
"""

import sys
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
_DETECTORS = {name: str(CONFIGS / f"tiny_{name}.py") for name in ("fcos", "faster_rcnn", "retinanet", "detr")}
_VIEWS = ("pretrain.views.short_sides=(96,128)", "pretrain.views.long_side=192", "pretrain.sampled_boxes=256")
_SIMSIAM = (
    "views.size=24",
    "max_side=64",
    "hidden_dims=32",
    "projection_dims=32",
    "predictor_dims=8",
    "lr=0.1",
)
_RANDOM_START = "model.backbone.init_cfg=None"


def small(words: list[str]) -> list[str]:
    """The words after `aligndet`, with the sizes above."""
    if not words or words[0] not in _CHANGES:
        return words
    return _CHANGES[words[0]](words)


def _pretrain(words: list[str]) -> list[str]:
    words = _detector(words)
    sizes = ["--iterations", "2", "--batch-size", "2", "--workers", "0", *_options(_VIEWS)]
    return [*words, *sizes, *_start(words)]


def _pretrain_backbone(words: list[str]) -> list[str]:
    words = [_DETECTORS["fcos"] if word == "resnet50" else word for word in words]
    sizes = tuple(size for size in _SIMSIAM if "simclr" not in words or not size.startswith("predictor"))
    return [*words, "--iterations", "3", "--batch-size", "4", "--workers", "0", *_options(sizes)]


def _finetune(words: list[str]) -> list[str]:
    words = _detector(words)
    sizes = ["--epochs", "1", "--batch-size", "4", "--lr", "0.01", "--image-size", "128x96", "--workers", "0"]
    return [*words, *sizes, *_start(words)]


def _evaluate(words: list[str]) -> list[str]:
    words = [word.replace("epoch_12.pth", "epoch_1.pth") for word in _detector(words)]
    return [*words, "--image-size", "128x96", "--workers", "0", *_start(words)]


def _regions(words: list[str]) -> list[str]:
    return [*words, "--short-side", "96", "--workers", "1"]


_CHANGES = {
    "pretrain": _pretrain,
    "pretrain-backbone": _pretrain_backbone,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "regions": _regions,
}


def _detector(words: list[str]) -> list[str]:
    """`--detector fcos` as `--config tests/configs/tiny_fcos.py`."""
    words = list(words)
    if "--detector" in words:
        place = words.index("--detector")
        name = words[place + 1]
        if name in _DETECTORS:
            words[place : place + 2] = ["--config", _DETECTORS[name]]
    return words


def _start(words: list[str]) -> list[str]:
    """Random weights where a config of the page's own names a download."""
    own = "--config" in words and words[words.index("--config") + 1] not in _DETECTORS.values()
    return _options((_RANDOM_START,)) if own and "--backbone-weights" not in words else []


def _options(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--cfg-options", value)]


if __name__ == "__main__":
    from proposals.cli import main

    sys.argv[1:] = small(sys.argv[1:])
    main()
