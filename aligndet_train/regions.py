"""Features of proposals from a frozen backbone: RoIAlign on its last map, averaged."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import Tensor
from torch.backends import cudnn
from torch.nn.functional import interpolate
from torchvision.ops import roi_align

from aligndet_train.config import read_config, shipped_config
from aligndet_train.initial_weights import load_initial_weights
from aligndet_train.plain_config import is_config
from aligndet_train.preprocess import InputSpec
from proposals.boxes import Boxes
from proposals.errors import AlignDetError
from proposals.images import Bgr

_BINS = 7
_SAMPLES_PER_BIN = 2


@dataclass(frozen=True)
class RegionSettings:
    """Plain data that a worker builds its encoder from.

    backbone, data_preprocessor: of a mmdet config. short_side, long_side: px, to which images are resized.
    custom_imports: the config's own, of the modules that register its classes; a worker has to import them again.
    """

    backbone: dict[str, Any]
    data_preprocessor: dict[str, Any]
    short_side: int
    long_side: int
    custom_imports: dict[str, Any] = field(default_factory=dict)


def region_settings(
    detector: str,
    options: Mapping[str, Any],
    short_side: int,
    long_side: int,
    weights: Path | None = None,
    *,
    quiet: bool = False,
) -> RegionSettings:
    """The backbone of ``detector``, a shipped name or any mmdet config file, with ``options`` changed in it.

    The detector around it need not be one that can be pretrained. weights: of the backbone, by the names of many
    projects; images are normalised as they were trained. What that changes is said unless ``quiet``. Raises
    AlignDetError for a name that does not exist, a config that cannot be read, or one without a backbone or its
    normalisation, and for weights that do not fill it.
    """
    path = Path(detector) if is_config(detector) else shipped_config(detector)
    # The file's own imports: where Python is refused, no --cfg-options may bring it back.
    allowed = {name: value for name, value in options.items() if name.split(".")[0] != "custom_imports"}
    if weights is not None:
        from aligndet_train.cli_backbone import plugged_options
        from aligndet_train.console import volume

        with volume("quiet" if quiet else "verbose"):
            # Workers are in folders of their own.
            allowed = plugged_options(path, allowed, weights.resolve())
    config = read_config(path, allowed, pretraining=True)
    backbone, preprocessor = (_part(config, name, path) for name in ("backbone", "data_preprocessor"))
    imports = dict(config.get("custom_imports") or {})
    return RegionSettings(backbone, preprocessor, short_side, long_side, imports)


def _part(config: Config, name: str, path: Path) -> dict[str, Any]:
    """``name`` in the config's model, or beside it, where mmengine's Runner also looks for a data_preprocessor."""
    model = config.model.to_dict()
    part = model.get(name) or (name == "data_preprocessor" and config.to_dict().get(name))
    if not isinstance(part, dict):
        raise AlignDetError(
            f"{path} has no `{name}` in its `model`, and both a backbone and its normalisation (data_preprocessor) are "
            "needed here: name a config that has them"
        )
    return part


class RegionEncoder:
    """A frozen backbone that turns boxes of an image into features.

    Raises AlignDetError when the backbone's weights cannot be read.
    """

    def __init__(self, settings: RegionSettings, device: str = "cpu") -> None:
        # The same sums in the same order everywhere, or ids would depend on the machine's load.
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.settings, self.device = settings, device
        self._spec = InputSpec.from_stock(settings.data_preprocessor)
        self._backbone = _frozen(settings).to(device)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (self._spec.mean, self._spec.std)
        )

    def identity(self) -> dict[str, Any]:
        """What the features depend on, as JSON data: settings, and the sha256 of the weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self._backbone.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        settings = {
            "backbone": self.settings.backbone,
            "data_preprocessor": self.settings.data_preprocessor,
            "short_side": self.settings.short_side,
            "long_side": self.settings.long_side,
            "roi_align": _BINS,
        }
        return {**json.loads(json.dumps(settings)), "weights": digest.hexdigest()}

    @torch.no_grad()
    def encode(self, bgr: Bgr, boxes: Boxes) -> npt.NDArray[np.float16]:
        """Features [N, C] float16 of ``boxes`` [N, 4] float32 xyxy px in ``bgr`` [H, W, 3] uint8."""
        image = torch.from_numpy(bgr).to(self.device).permute(2, 0, 1)
        height, width = image.shape[1:]
        factor = min(
            self.settings.short_side / min(height, width), self.settings.long_side / max(height, width)
        )
        size = max(1, round(height * factor)), max(1, round(width * factor))
        # TF32 would round features to 10 bits on some GPUs and not on others.
        with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            features = self._backbone(self._input(image, size))[-1]
        scale = torch.tensor([size[1] / width, size[0] / height] * 2, device=self.device)
        stride = self._padded(size)[1] / features.shape[-1]
        moved = torch.from_numpy(boxes).to(self.device) * scale
        pooled = roi_align(
            features, [moved], _BINS, 1 / stride, sampling_ratio=_SAMPLES_PER_BIN, aligned=True
        )
        return np.asarray(pooled.mean(dim=(2, 3)).half().cpu().numpy(), dtype=np.float16)

    def _input(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        channels = image.flip(0) if self._spec.bgr_to_rgb else image
        resized = interpolate(channels[None].float(), size, mode="bilinear", antialias=True)
        normal = (resized - self._mean) / self._std
        height, width = self._padded(size)
        return torch.nn.functional.pad(normal, (0, width - size[1], 0, height - size[0]))

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // 32) * 32, -(-size[1] // 32) * 32


def _frozen(settings: RegionSettings) -> Any:
    backbone = settings.backbone
    import_module("aligndet_train.backbones")
    if settings.custom_imports:
        _import(settings.custom_imports)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS.build(ConfigDict(backbone))
    try:
        load_initial_weights(model, model)
    except OSError as error:
        raise AlignDetError(
            f"the backbone's weights ({backbone.get('init_cfg')}) could not be read: {error}. Name a local file with "
            "--backbone-weights FILE"
        ) from error
    model.requires_grad_(False)
    model.eval()  # mmdet's ResNet returns None
    return model


def _import(custom_imports: dict[str, Any]) -> None:
    try:
        import_modules_from_strings(**custom_imports)
    except Exception as error:  # the user's own code
        raise AlignDetError(
            f"the config's custom_imports ({custom_imports.get('imports')}) failed in a worker: "
            f"{type(error).__name__}: {error}. Put the module on PYTHONPATH, on every node where Ray runs workers"
        ) from error
