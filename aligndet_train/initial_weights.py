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
    "`aligndet backbone inspect FILE` says what it is and fits; with --backbone-weights FILE `pretrain`, `finetune` "
    "and `regions` read weights by the names of many projects"
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
    model: Any, backbone: nn.Module, initialise: Callable[[], None] | None = None
) -> list[str]:
    """Initialise ``model``; what the log should say of weights that ``backbone``, in it or the same, was not given.

    initialise: in place of ``model.init_weights``. Raises OSError when weights that their ``init_cfg`` name cannot be
    fetched, AlignDetError when they cannot be read or do not fill the backbone.
    """
    own = _named_by(backbone)
    files = ", ".join(dict.fromkeys([*own, *_named_by(model)]))
    with _names_loaded(model) as loaded:
        try:
            (initialise or model.init_weights)()
        except (OSError, AlignDetError):
            raise
        except Exception as error:  # of a damaged file anything may come
            if not files:
                raise
            raise AlignDetError(
                f"the initial weights {files} cannot be loaded ({type(error).__name__}): damaged, no file of "
                f"tensors alone, or by other names. {_ADVICE}"
            ) from error
    if not files:
        return []
    # A detector's file may be of its neck or heads alone.
    return _left_out(model, backbone, loaded, files, required=bool(own) or not loaded)


def _left_out(
    model: nn.Module, backbone: nn.Module, loaded: set[str], files: str, *, required: bool
) -> list[str]:
    of_backbone = {id(value) for value in backbone.parameters()}
    sizes = {name: value.numel() for name, value in model.named_parameters() if id(value) in of_backbone}
    missing = [name for name in sizes if name not in loaded]
    share = 1 - sum(sizes[name] for name in missing) / sum(sizes.values())
    examples = ", ".join(missing[:_EXAMPLES])
    if share < _LEAST_SHARE and required:
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
def _names_loaded(model: nn.Module) -> Iterator[set[str]]:
    """Names of ``model``'s parameters that are loaded inside, whoever loads them, into whatever part of it."""
    loaded: set[str] = set()

    def taking(place: str) -> Callable[..., None]:
        def take(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
            for name, own in module.named_parameters(recurse=False):
                value = state.get(f"{prefix}{name}")
                if value is not None and value.shape == own.shape:
                    loaded.add(f"{place}.{name}" if place else name)

        return take

    handles = [
        module.register_load_state_dict_pre_hook(taking(place)) for place, module in model.named_modules()
    ]
    try:
        yield loaded
    finally:
        for handle in handles:
            handle.remove()


def _named_by(module: nn.Module) -> list[str]:
    # Of what was built: some backbones make an init_cfg of another setting, or load that by themselves.
    return _checkpoints({"init_cfg": getattr(module, "init_cfg", None)})


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
