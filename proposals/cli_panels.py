"""Headings that `aligndet --help` has its verbs under, in the order in which a newcomer needs them."""

from typing import Any

MINE = "Mine proposals"
TRAIN = "Pretrain and fine-tune"
LOOK = "Look at a dataset"
CHANGE = "Change, join and convert datasets"
INSTALLATION = "The installation"

_ORDER = (MINE, TRAIN, LOOK, CHANGE, INSTALLATION)


def place_of(command: Any) -> int:
    """Where ``command`` comes in the help; one without a heading of ours comes last."""
    panel = getattr(command, "rich_help_panel", None)
    return _ORDER.index(panel) if panel in _ORDER else len(_ORDER)
