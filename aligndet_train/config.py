"""From a mmdet config file to what a pretraining run needs: the stock model, and PretrainConfig.

Precedence, lowest first: PretrainConfig's defaults, the family's (the release's values), the config file's
``pretrain = dict(...)``, the command line. An unknown key is an error at every stage.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Self

from mmengine.config import Config
from mmengine.runner import Runner
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from aligndet_train.detectors import adapter_for
from aligndet_train.detectors.class_names import class_name, with_registered_names
from aligndet_train.initial_weights import require_initialisers
from aligndet_train.plain_config import is_plain, read_plain
from aligndet_train.setting_types import Count, Positive, Share
from aligndet_train.unread_options import require_read
from aligndet_train.views import ViewConfig
from aligndet_train.zoo import OF_MMDET
from proposals.errors import AlignDetError

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PretrainConfig:
    """Box-domain pretraining. Defaults are the release's for dense heads; an adapter has its family's.

    epochs / iterations: length of the run; iterations, when given, wins. batch_size: images a step on one GPU.
    base_batch_size: the global batch the learning rate is meant for; another one scales it linearly.
    warmup_steps are cut to a fifth of a short run; milestones are fractions of the run.
    sampled_boxes: predicted boxes per view and step that enter the contrastive loss, of the same proposals in both;
    None: all. background_share: of them, those that are background, where there are more boxes than that.
    gather_negatives: contrast the boxes of all ranks with each other; the release keeps each rank to itself.
    contrast_images: contrast the boxes of so many neighbouring images of a rank with each other, and not with those of
    its other images; None: of all (the release has 2 images on a GPU, so that half of what a box is told from is in
    its own). Background stands for the whole batch: it is dealt out to the groups.
    rois_per_image: RoIs that the one RoI head of a two-stage detector learns from, positives alone; None leaves it its
    config's sampler. proposals_per_image: best-ranked boxes used; None keeps all. clip_grad: maximal norm, or None.
    canvas_multiple: batches are padded to multiples of it, and of the detector's divisor: fewer shapes, more pixels.
    channels_last: keep images and weights in torch's NHWC order. compile_backbone: torch.compile the frozen backbone,
    once for every shape of a batch (so with a coarse canvas_multiple). compile_loss: torch.compile the contrastive
    loss, some seconds once or twice a run. All three change speed, not what is computed.
    classes: of the class branch, where a family keeps it (query detectors): the number of clusters. None takes the
    dataset's, or 1 when it has none.
    """

    epochs: Count = 12
    iterations: Count | None = None
    batch_size: Count = 2
    base_batch_size: Count = 16
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    )
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    warmup_ratio: Share = 1e-3
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (8 / 12, 11 / 12)
    gamma: Positive = 0.1
    clip_grad: Positive | None = None
    momentum_start: Share = 0.996
    momentum_end: Share = 1.0
    embed_dims: Count = 256
    temperature: Positive = 0.5
    gather_negatives: bool = False
    contrast_images: Count | None = None
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0
    regression_weight: Annotated[float, Field(ge=0)] = 1.0
    sampled_boxes: Count | None = 2048
    background_share: Share = 0.25
    rois_per_image: Count | None = None
    proposals_per_image: Count | None = None
    classes: Count | None = None
    shard_window: Count = 8
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    canvas_multiple: Count = 1
    channels_last: bool = False
    compile_backbone: bool = False
    compile_loss: bool = False
    views: ViewConfig = field(default_factory=ViewConfig)

    @model_validator(mode="after")
    def _is_contrasted_in_one_way(self) -> Self:
        if self.gather_negatives and self.contrast_images is not None:
            raise ValueError(
                "contrast_images takes images apart that gather_negatives brings together: drop one"
            )
        return self

    @field_validator("optimizer")
    @classmethod
    def _has_a_rate(cls, optimizer: dict[str, Any]) -> dict[str, Any]:
        rate = optimizer.get("lr")
        if (
            not isinstance(optimizer.get("type"), str)
            or isinstance(rate, bool)
            or not isinstance(rate, (int, float))
        ):
            raise ValueError("an optimizer needs its type and lr (of another type nothing is taken over)")
        return optimizer


@dataclass(frozen=True)
class RunConfig:
    """A loaded config: the stock model as plain data, and how to pretrain it.

    load_from: weights that the file names for mmengine's Runner, which pretraining does not read.
    """

    name: str
    stock_model: dict[str, Any]
    pretrain: PretrainConfig
    load_from: str | None = None


# Besides what mmengine's Runner takes: of mmengine itself, of mmdet's configs, ours.
_PARTS = (
    "custom_imports", "sync_bn", "find_unused_parameters", "model_wrapper_cfg", "activation_checkpointing",
    "efficient_conv_bn_eval", "compile", "train_pipeline", "test_pipeline", "tta_model", "tta_pipeline", "pretrain",
    "pretrain_model",
)  # fmt: skip


def available_detectors() -> list[str]:
    """Names accepted by ``--detector``: the configs that ship with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if not path.stem.startswith("_"))


def shipped_config(name: str) -> Path:
    """The config file of a shipped detector. Raises AlignDetError listing the names."""
    if name not in available_detectors():
        raise AlignDetError(f"no detector named {name!r}; shipped: {', '.join(available_detectors())}")
    return CONFIGS / f"{name}.py"


def load_run_config(path: Path, overrides: Mapping[str, Any], options: Mapping[str, Any]) -> RunConfig:
    """Read a mmdet config file (its Python code is run: use files you trust).

    overrides: PretrainConfig fields from the command line. options: dotted ``--cfg-options`` on the whole file.
    Raises AlignDetError for an unreadable file, an unsupported head or an unknown ``pretrain`` key.
    """
    config = read_config(path, options, pretraining=True)
    require_read(options, "pretrain")
    model, own = (
        with_registered_names((config.get(name) or Config()).to_dict()) for name in ("model", "pretrain")
    )
    model["data_preprocessor"] = preprocessor_of(config, path)[1]
    adapter = adapter_for(model["type"], head_type(model))
    if not isinstance(model.get("backbone"), dict):
        raise AlignDetError(
            f"the model of {path} has no `backbone` of settings, and pretraining is on top of one"
        )
    require_initialisers(model)
    given = merged(adapter.defaults, own, overrides)
    if given.get("rois_per_image") is not None and "rois_per_image" not in adapter.defaults:
        raise AlignDetError(
            f"pretrain.rois_per_image is for detectors with one RoI head; {path.stem} keeps its own samplers: drop it"
        )
    return RunConfig(
        name=path.stem,
        stock_model=model,
        pretrain=pretrain_config(given, source=str(path)),
        load_from=config.get("load_from"),
    )


def preprocessor_of(config: Config, source: Path | str) -> tuple[str, dict[str, Any]]:
    """(dotted name, settings) of the ``data_preprocessor`` of a config read from ``source``.

    mmengine's Runner lets a config name it in the model and beside it; the model's goes first. Raises AlignDetError
    when there is none.
    """
    for place, owner in (("model.data_preprocessor", config.model), ("data_preprocessor", config)):
        if owner.get("data_preprocessor"):
            return place, with_registered_names(owner.data_preprocessor.to_dict())
    raise AlignDetError(f"{source} has no `data_preprocessor`, so how its images are normalised is unknown")


def read_config(path: Path, options: Mapping[str, Any], *, pretraining: bool = False) -> Config:
    """A mmdet config file with dotted ``--cfg-options`` applied. Python code is run; JSON and YAML are plain data.

    pretraining: put what the file's ``pretrain_model`` says into its ``model``, such as samplers that are of use on
    proposals but not on labels.

    Raises AlignDetError when there is no such file, it cannot be read or run, or it defines no model.
    """
    if not path.is_file():
        raise AlignDetError(
            f"no config file at {path}; shipped detectors: {', '.join(available_detectors())}. One of mmdet's own: "
            f"give a file with the line {OF_MMDET}"
        )
    config = read_plain(path) if is_plain(path) else _run_config(path)
    _require_known(options, config)
    try:
        if pretraining and "pretrain_model" in config:
            config.merge_from_dict({"model": config.pretrain_model})
        config.merge_from_dict(dict(options))
    except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise AlignDetError(f"--cfg-options, or its pretrain_model, do not fit {path}: {error}") from error
    if not isinstance(config.get("model"), dict):
        raise AlignDetError(f"{path} defines no `model` of settings: it is not a detector config")
    if not isinstance(config.get("pretrain", {}), dict):
        raise AlignDetError(
            f"`pretrain` is a group of settings, not {config.pretrain!r}: name one, as pretrain.epochs"
        )
    return config


def _require_known(options: Mapping[str, Any], config: Config) -> None:
    """Raise AlignDetError for an option of a part that neither the file has nor mmengine's Runner nor we look for."""
    known = {*config.keys(), *inspect.signature(Runner.__init__).parameters, *_PARTS}
    settings = {field.name for field in dataclasses.fields(PretrainConfig)}
    for option in options:
        part = option.split(".")[0]
        if part not in known:
            meant = f": pretrain.{option}?" if part in settings else ""
            raise AlignDetError(
                f"--cfg-options {option}: the config has no {part}, and nothing would read it{meant or '. Correct it'}"
            )


def _run_config(path: Path) -> Config:
    try:
        return Config.fromfile(path)
    except Exception as error:  # it is a program: anything may go wrong in it
        reason = str(error).splitlines()[0] if str(error) else ""
        raise AlignDetError(
            f"{path} cannot be run as a mmdet config: {type(error).__name__}: {reason}. A config is a .py file that "
            "defines `model`, or the same as .json or .yaml"
        ) from error


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; dictionaries are merged key by key, or replaced where ``_delete_`` is set or
    ``type`` differs (an AdamW takes nothing from an SGD)."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            inherits = isinstance(value, Mapping) and not value.get("_delete_", False)
            below = result.get(name) if inherits else None
            if isinstance(below, Mapping) and value.get("type", below.get("type")) != below.get("type"):
                below = None
            both = {**below, **value} if isinstance(below, Mapping) else value
            result[name] = (
                {k: v for k, v in both.items() if k != "_delete_"} if isinstance(both, Mapping) else both
            )
    return result


def head_type(model: Mapping[str, Any]) -> str:
    """The mmdet class name of a model's final head, without scope or module; or a readable blank."""
    head = model.get("bbox_head") or (model.get("roi_head") or {}).get("bbox_head") or {}
    if isinstance(head, (list, tuple)):
        head = head[-1]
    return class_name(head.get("type", "(none)"))


def pretrain_config(given: Mapping[str, Any], source: str) -> PretrainConfig:
    """Build PretrainConfig from plain data. Raises AlignDetError naming every wrong key or value, and ``source``."""
    try:
        return TypeAdapter(PretrainConfig).validate_python(dict(given))
    except ValidationError as error:
        lines = [
            f"pretrain.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})"
            for e in error.errors()
        ]
        known = ", ".join(PretrainConfig.__dataclass_fields__)
        raise AlignDetError(
            f"{source}:\n  " + "\n  ".join(lines) + f"\nknown keys of pretrain: {known}"
        ) from error
