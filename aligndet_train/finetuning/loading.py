"""Weights into a detector of mmdet: what fits by name and shape, and what is said of the rest."""

import re

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from aligndet_train.detectors.class_names import class_name
from aligndet_train.detectors.two_stage import repeated_regressor
from aligndet_train.distributed import unwrapped
from aligndet_train.export import KeyReport, key_report
from proposals.errors import AlignDetError

_NAMED = 20  # tensors that weights leave new
_REGRESSOR = re.compile(r"^roi_head\.bbox_head\.(\d+\.)?fc_reg\.(weight|bias)$")


class LoadWeightsHook(Hook):
    """Puts weights into the model once it is initialised; a resumed run has its own."""

    priority = "VERY_HIGH"

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.report: KeyReport | None = None

    def before_train(self, runner: Runner) -> None:
        """Load by name and shape; the class predictor of other categories stays at its initial value."""
        if runner.iter:
            return
        self.report = report = load_into(unwrapped(runner.model), self.state)
        new = [*report.left_at_init[:_NAMED], *(["..."] if len(report.left_at_init) > _NAMED else [])]
        runner.logger.info(
            f"weights: {len(report.loaded)} tensors loaded, {len(report.left_at_init)} new"
            + "".join(f"\n  {name}" for name in new)
        )
        if report.unknown:
            runner.logger.warning(
                f"the weights hold {len(report.unknown)} tensors that this detector does not have, {report.unknown[0]} "
                "first: they are of another config. What has the same name and shape was loaded all the same, though "
                "it may have learned to work with what is missing here"
            )


def load_into(model: torch.nn.Module, state: dict[str, Tensor]) -> KeyReport:
    """Load what fits by name and shape, and say what did not."""
    own = model.state_dict()
    state = {name: _for_all_classes(name, value, own.get(name)) for name, value in state.items()}
    report = key_report(state, own)
    if not report.beyond_backbone and not only_backbone(state):
        raise AlignDetError(
            "the weights fit nothing of this detector beyond its backbone: they come from another config, from a "
            "pretraining run's last.pth, which `aligndet export` makes weights of, or are a backbone's alone, which "
            "fine-tuning takes as --backbone-weights. Name the config they were made for"
        )
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    return report


def only_backbone(state: dict[str, Tensor]) -> bool:
    """Whether ``state`` has a detector's names, all of its backbone."""
    return all(name.startswith("backbone.") for name in state)


def skip_downloads(config: Config) -> None:
    """Let the detector of ``config``, and its backbone, begin without weights, in place.

    They are about to be overwritten: fetching others first would be in vain, or fail.
    """
    backbone = config.model.backbone
    names = ("init_cfg", "pretrained", *(("weights",) if class_name(backbone.type) == "TimmBackbone" else ()))
    for name in names:
        backbone.pop(name, None)
    config.model.pop("init_cfg", None)


def _for_all_classes(name: str, value: Tensor, own: Tensor | None) -> Tensor:
    """A RoI head's box regressor that `export` repeated for each class of one config, for as many as another has."""
    if own is None or value.shape == own.shape or not _REGRESSOR.search(name) or len(value) % 4:
        return value
    of_class = value.reshape(-1, 4, *value.shape[1:])
    return repeated_regressor(value[:4], own) if bool((of_class == of_class[:1]).all()) else value
