"""What the shipped `*_lite0` configs say of EfficientNet-Lite0: the one with all four taps, for tests to try."""

from typing import Any

from aligndet_train.config import CONFIGS, read_config

ALL_TAPS = CONFIGS / "cascade_rcnn_lite0.py"


def settings(config: Any = ALL_TAPS) -> dict[str, Any]:
    """model_name, mean and std, and the ``feature_scale`` of each tap by its number."""
    model = read_config(config, {}).model
    backbone = model.backbone
    return {
        "model_name": backbone.model_name,
        "mean": tuple(model.data_preprocessor.mean),
        "std": tuple(model.data_preprocessor.std),
        "scales": dict(zip(backbone.out_indices, backbone.feature_scale, strict=True)),
    }


_OURS = settings()
MODEL_NAME, MEAN, STD = _OURS["model_name"], _OURS["mean"], _OURS["std"]
FEATURE_STD = tuple(_OURS["scales"][tap] for tap in (1, 2, 3, 4))
