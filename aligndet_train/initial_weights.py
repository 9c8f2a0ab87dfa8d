"""Weights that a config names for a backbone: in their file, or nothing begins.

mmengine passes over what a file lacks or has in another shape, and a frozen backbone would stay random.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from aligndet_train.backbones.scheme import SCHEME
from proposals.dataset.files import file_sha256
from proposals.errors import AlignDetError

# Of a backbone's numbers. What detection adds to it (offsets, attention) is in no file, and is less than this.
_LEAST_SHARE = 0.5
_EXAMPLES = 3
_ADVICE = (
    "`aligndet backbone inspect FILE` says what it is and fits; with --backbone-weights FILE `pretrain` and `finetune` "
    "read weights by the names of many projects"
)


def names_weights(stock_model: Mapping[str, Any]) -> bool:
    """Whether a detector's config, or that of its backbone, names weights to begin with."""
    backbone = stock_model.get("backbone") or {}
    return bool(_checkpoints(stock_model) or _checkpoints(backbone) or backbone.get("weights"))


def require_initialisers(stock_model: Mapping[str, Any]) -> None:
    """Raise AlignDetError when an ``init_cfg`` of a detector or its backbone is not what mmengine takes."""
    for part, settings in (("model", stock_model), ("model.backbone", stock_model["backbone"])):
        try:
            _initialisers(settings)
        except AlignDetError as error:
            raise AlignDetError(f"{part}.{error}") from error


def files_begun_from(backbone: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the files on this machine that a ``backbone`` begins from, by the option that names each."""
    named = {name: backbone.get(name) for name in ("weights", "pretrained")}
    several = isinstance(backbone.get("init_cfg"), (list, tuple))
    for place, initialiser in enumerate(_initialisers(backbone)):
        option = f"init_cfg.{place}" if several else "init_cfg"
        named[f"{option}.checkpoint"] = initialiser.get("checkpoint")
    paths = {option: _local_file(name) for option, name in named.items() if isinstance(name, str)}
    return {option: file_sha256(path) for option, path in paths.items() if path is not None}


def begins_from(backbone: Mapping[str, Any], weights: Path) -> bool:
    """Whether ``--backbone-weights`` put the file called ``weights`` into a ``backbone``'s settings."""
    converted = [name for name in _checkpoints(backbone) if name.startswith(SCHEME)]
    named = [backbone.get("weights"), *(str(_path(name)) for name in converted)]
    return str(weights) in named


def load_initial_weights(
    initialise: Callable[[], None], backbone: nn.Module, *settings: Mapping[str, Any]
) -> list[str]:
    """Call ``initialise``, a model's ``init_weights``; what the log should say of weights that its ``backbone`` lacks.

    settings: configs of both, or of the one that they are. Raises OSError when weights that these name cannot be
    fetched, AlignDetError when they cannot be read or do not fill the backbone.
    """
    files = ", ".join(name for config in settings for name in _checkpoints(config))
    with _names_loaded(backbone) as loaded:
        try:
            initialise()
        except (OSError, AlignDetError):
            raise
        except Exception as error:  # of a damaged file anything may come
            if not files:
                raise
            raise AlignDetError(
                f"the initial weights {files} cannot be loaded ({type(error).__name__}): damaged, no file of "
                f"tensors alone, or by other names. {_ADVICE}"
            ) from error
    return _left_out(backbone, loaded, files) if files else []


def _left_out(backbone: nn.Module, loaded: set[str], files: str) -> list[str]:
    sizes = {name: value.numel() for name, value in backbone.named_parameters()}
    missing = [name for name in sizes if name not in loaded]
    share = 1 - sum(sizes[name] for name in missing) / sum(sizes.values())
    examples = ", ".join(missing[:_EXAMPLES])
    if share < _LEAST_SHARE:
        raise AlignDetError(
            f"{files} fills {share:.0%} of the backbone ({type(backbone).__name__}), and the rest would stay random. "
            f"Not in it, by name and shape: {examples}. {_ADVICE}"
        )
    if not missing:
        return []
    return [
        f"{files} fills {share:.1%} of the backbone: {len(missing)} of its {len(sizes)} parameters keep their "
        f"initial values, first {examples}"
    ]


@contextmanager
def _names_loaded(backbone: nn.Module) -> Iterator[set[str]]:
    """Names of ``backbone``'s tensors that are loaded inside, whoever loads them."""
    loaded: set[str] = set()

    def take(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        own = module.state_dict()
        given = {name: state.get(f"{prefix}{name}") for name in own}
        loaded.update(
            name for name, value in given.items() if value is not None and value.shape == own[name].shape
        )

    handle = backbone.register_load_state_dict_pre_hook(take)  # type: ignore[no-untyped-call]
    try:
        yield loaded
    finally:
        handle.remove()


def _checkpoints(settings: Mapping[str, Any]) -> list[str]:
    """The weights that the config of a detector or a backbone names, but for TimmBackbone's, which checks its own."""
    pretrained = [one for one in _initialisers(settings) if one.get("type") == "Pretrained"]
    named = [one.get("checkpoint") for one in pretrained] + [settings.get("pretrained")]
    return [str(name) for name in named if name]


def _initialisers(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    given = settings.get("init_cfg") or []
    several = [given] if isinstance(given, Mapping) else given
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, Mapping) for one in several):
        raise AlignDetError(
            f"init_cfg is {given!r}, where mmengine takes dict(type='Pretrained', checkpoint=FILE). A backbone's "
            "weights are named more easily with --backbone-weights FILE"
        )
    return list(several)


def _local_file(name: str) -> Path | None:
    path = _path(name)
    return path if path.is_file() else None


def _path(name: str) -> Path:
    return Path(name.removeprefix(SCHEME).partition(":")[2] if name.startswith(SCHEME) else name)
