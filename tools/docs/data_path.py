"""Draws docs/images/data_path.svg, the picture of the architecture page.

python tools/docs/data_path.py [FILE]
"""

import sys
from dataclasses import dataclass
from pathlib import Path

TARGET = Path(__file__).parents[2] / "docs" / "images" / "data_path.svg"
_WIDTH, _LEFT, _STEP, _HEIGHT = 400, 24, 78, 54
_MINE, _DISK, _TRAIN = "#d7efe9", "#fbe9c6", "#dde3f7"


@dataclass(frozen=True)
class Stage:
    """A box of the picture: what it is, a line about it, and the colour of who owns it."""

    title: str
    note: str
    colour: str


STAGES = (
    Stage("Images", "folder, list, COCO json, tars, tables; any URL", "#eeeeee"),
    Stage("Plan", "which image in which shard: plan.parquet", _MINE),
    Stage("Shard task (Ray)", "decode, resize, search, order, filter", _MINE),
    Stage("shards/00042 .tar .parquet", "then 00042.json, which makes them count", _DISK),
    Stage("dataset.json", "written last: recipe, totals, sha256 of all", _DISK),
    Stage("Order", "a function of (dataset, seed, epoch)", _TRAIN),
    Stage("Sample", "one read at (shard, offset), decoded on a CPU", _TRAIN),
    Stage("Two views (GPU)", "the proposals move with them", _TRAIN),
    Stage("Student and teacher", "one frozen backbone; mmdet's own assigner", _TRAIN),
    Stage("Losses", "contrast of boxes + the detector's box losses", _TRAIN),
    Stage("Exported weights", "load in the stock mmdet config", "#eeeeee"),
)
_OWNERS = ((1, 2, "pipeline"), (3, 4, "files"), (5, 9, "aligndet_train"))


def drawing() -> str:
    """The picture as SVG, one stage below the other so that a phone can read it."""
    height = _STEP * len(STAGES) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" rx="10" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>',
    ]
    parts += [_owner(*owner) for owner in _OWNERS]
    parts += [_stage(number, stage) for number, stage in enumerate(STAGES)]
    parts += [_arrow(number) for number in range(len(STAGES) - 1)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _stage(number: int, stage: Stage) -> str:
    top, middle = 18 + number * _STEP, (_WIDTH + _LEFT) / 2
    return (
        f'<rect x="{_LEFT + 20}" y="{top}" width="{_WIDTH - _LEFT - 40}" height="{_HEIGHT}" rx="7" '
        f'fill="{stage.colour}" stroke="#999"/>\n'
        f'<text x="{middle}" y="{top + 23}" text-anchor="middle" font-size="16" font-weight="600" fill="#111">'
        f"{stage.title}</text>\n"
        f'<text x="{middle}" y="{top + 43}" text-anchor="middle" font-size="14" fill="#333">{stage.note}</text>'
    )


def _arrow(number: int) -> str:
    top, middle = 18 + number * _STEP + _HEIGHT, (_WIDTH + _LEFT) / 2
    return (
        f'<path d="M{middle} {top + 2}V{top + _STEP - _HEIGHT - 3}" stroke="#555" stroke-width="1.5" '
        'marker-end="url(#tip)"/>'
    )


def _owner(first: int, last: int, name: str) -> str:
    top, bottom = 18 + first * _STEP, 18 + last * _STEP + _HEIGHT
    middle = (top + bottom) / 2
    return (
        f'<path d="M32 {top}V{bottom}" stroke="#888" stroke-width="2"/>\n'
        f'<text x="20" y="{middle}" font-size="14" fill="#333" text-anchor="middle" '
        f'transform="rotate(-90 20 {middle})">{name}</text>'
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(drawing())
    print(f"wrote {target}")
