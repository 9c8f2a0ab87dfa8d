"""What was tried on mmdet's own configs: the table that benchmarks/zoo_coverage.py writes and the package carries."""

import json
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent / "zoo.json"

# The line of a config that takes over one of mmdet's own.
OF_MMDET = '_base_ = "mmdet::atss/atss_r50_fpn_1x_coco.py"'


@dataclass(frozen=True)
class Trial:
    """One stock config. adapter: the family that converts it, None for none. head_loaded of head_keys: keys beyond
    the backbone that the stock model takes from the export. reason: what went wrong, None when nothing did."""

    family: str
    config: str
    adapter: str | None
    converted: bool
    trained: bool
    head_loaded: int | None
    head_keys: int | None
    reason: str | None

    @property
    def passed(self) -> bool:
        """Converted, trained, exported, loaded."""
        return bool(self.head_loaded)


@dataclass(frozen=True)
class ZooTable:
    """date: of the trials, ISO. versions: of mmdet and torch."""

    date: str
    versions: dict[str, str]
    trials: tuple[Trial, ...]


def zoo_table() -> ZooTable:
    """The table of this release."""
    table = json.loads(TABLE.read_text())
    trials = tuple(Trial(**row) for row in table["rows"])
    return ZooTable(table["date"], table["versions"], trials)
