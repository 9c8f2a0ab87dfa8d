"""From a mmdet config file to what a pretraining run needs: the stock model, and PretrainConfig.

Precedence, lowest first: PretrainConfig's defaults, the family's (the release's values), the config file's
``pretrain = dict(...)``, the command line. An unknown key is an error at every stage.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from aligndet_train.detectors import adapter_for
from aligndet_train.views import ViewConfig
from proposals.errors import AlignDetError

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class PretrainConfig:
    """Box-domain pretraining. Defaults are the release's (METHOD section 6).

    epochs / iterations: length of the run; iterations, when given, wins. batch_size: images a step on one GPU.
    base_batch_size: the global batch the learning rate is meant for; another one scales it linearly.
    warmup_steps are cut to a fifth of a short run; milestones are fractions of the run.
    sampled_boxes: predicted boxes per view that enter the contrastive loss, positives first; None keeps all.
    proposals_per_image: best-ranked boxes used; None keeps all. clip_grad: maximal norm, None for no clipping.
    """

    epochs: int = 12
    iterations: int | None = None
    batch_size: int = 2
    base_batch_size: int = 16
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    )
    warmup_steps: int = 500
    warmup_ratio: float = 1e-3
    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    gamma: float = 0.1
    clip_grad: float | None = 35.0
    momentum_start: float = 0.996
    momentum_end: float = 1.0
    embed_dims: int = 256
    temperature: float = 0.5
    contrastive_weight: float = 1.0
    regression_weight: float = 1.0
    sampled_boxes: int | None = 2048
    proposals_per_image: int | None = None
    shard_window: int = 8
    seed: int = 0
    views: ViewConfig = field(default_factory=ViewConfig)


@dataclass(frozen=True)
class RunConfig:
    """A loaded config: the stock model as plain data, and how to pretrain it."""

    name: str
    stock_model: dict[str, Any]
    pretrain: PretrainConfig


def available_detectors() -> list[str]:
    """Names accepted by ``--detector``: the configs that ship with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if not path.stem.startswith("_"))


def shipped_config(name: str) -> Path:
    """The config file of a shipped detector. Raises AlignDetError listing the names."""
    path = CONFIGS / f"{name}.py"
    if not path.exists():
        raise AlignDetError(f"no detector named {name!r}; shipped: {', '.join(available_detectors())}")
    return path


def load_run_config(path: Path, overrides: Mapping[str, Any], options: Mapping[str, Any]) -> RunConfig:
    """Read a mmdet config file (its Python code is run: use files you trust).

    overrides: PretrainConfig fields from the command line. options: dotted ``--cfg-options`` on the whole file.
    Raises AlignDetError for an unreadable file, an unsupported head or an unknown ``pretrain`` key.
    """
    if not path.is_file():
        raise AlignDetError(
            f"no config file at {path}; shipped detectors: {', '.join(available_detectors())}"
        )
    config = Config.fromfile(path)
    config.merge_from_dict(dict(options))
    if "model" not in config:
        raise AlignDetError(f"{path} defines no `model`: it is not a detector config")
    model = config.model.to_dict()
    adapter = adapter_for(model["type"], head_type(model))
    given = {**adapter.defaults, **config.get("pretrain", {}), **overrides}
    return RunConfig(name=path.stem, stock_model=model, pretrain=pretrain_config(given, source=str(path)))


def head_type(model: Mapping[str, Any]) -> str:
    """The mmdet class name of a model's final head, or a readable blank."""
    head = model.get("bbox_head") or (model.get("roi_head") or {}).get("bbox_head") or {}
    if isinstance(head, (list, tuple)):
        head = head[-1]
    return str(head.get("type", "(none)"))


def pretrain_config(given: Mapping[str, Any], source: str) -> PretrainConfig:
    """Build PretrainConfig from plain data. Raises AlignDetError naming an unknown key and ``source``."""
    values = dict(given)
    views = values.pop("views", {})
    if not isinstance(views, ViewConfig):
        views = ViewConfig(**_known(ViewConfig, views, f"{source}: pretrain.views"))
    return PretrainConfig(views=views, **_known(PretrainConfig, values, f"{source}: pretrain"))


def _known(kind: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(given) - fields)
    if unknown:
        raise AlignDetError(
            f"{where} has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(fields))}"
        )
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
