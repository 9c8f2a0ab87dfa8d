"""What `aligndet backbone inspect` prints: what a file is, what becomes of its keys, what it fits."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from aligndet_train.backbones.convert import Converted, convert
from aligndet_train.backbones.plug import Fit, fit
from aligndet_train.backbones.registry import MMDET_BACKBONES
from aligndet_train.config import available_detectors, read_config, shipped_config
from proposals.errors import AlignDetError

_EXAMPLES = 2
# Settings of a backbone that change none of its tensors' names or shapes.
_NO_ARCHITECTURE = (
    "init_cfg",
    "norm_eval",
    "frozen_stages",
    "style",
    "norm_cfg",
    "with_cp",
    "drop_path_rate",
)


def inspection(path: Path) -> Iterator[RenderableType]:
    """The parts of the report, one after another. Raises AlignDetError for a file that cannot be read."""
    converted = convert(path)
    yield _as_it_is(headline(converted))
    yield key_table(converted)
    names = fitting_backbones(converted)
    yield f"fits these backbones: {', '.join(names) or 'none of the registry'}"
    if converted.family.name in ("ViT", "other"):
        yield "for a config with type='TimmBackbone', weights=FILE: timm's names are matched"
    detectors = fitting_detectors(converted)
    yield f"fits these detectors: {', '.join(detectors) or 'none that ship with us'}"
    detector = "--detector NAME" if detectors else "--config YOURS.py"
    yield _as_it_is(f"use: aligndet pretrain {detector} --backbone-weights {path} ...")


def _as_it_is(*names: str) -> Text:
    """A line each, without markup: a stranger's names may look like it, or hold a terminal's escape sequences."""
    return Text("\n".join(name if name.isprintable() else repr(name) for name in names))


def inspection_json(path: Path) -> dict[str, Any]:
    """The report as JSON values. Raises AlignDetError for a file that cannot be read."""
    converted = convert(path)
    return {
        "file": str(path),
        "project": converted.project,
        "family": converted.family.name,
        "architecture": architecture(converted),
        "renamed": dict(converted.used),
        "left": dict(converted.left),
        "no_tensors": list(converted.file.beside),
        "fits_backbones": fitting_backbones(converted),
        "fits_detectors": fitting_detectors(converted),
    }


def headline(converted: Converted) -> str:
    """One line: project, architecture, number of parameters, and the images it was trained on, if known."""
    parameters = sum(value.numel() for value in converted.state.values())
    line = f"{converted.path}: {converted.project}; {architecture(converted)}, {parameters:,} numbers"
    if converted.meta:
        inputs = converted.meta["inputs"]
        order = "RGB" if inputs["bgr_to_rgb"] else "BGR"
        line += f"; {converted.meta['step']:,} steps on {order} images, mean {inputs['mean']}, std {inputs['std']}"
    return line


def key_table(converted: Converted) -> Table:
    """Every key of the file under what becomes of it, and the entries that hold no tensors."""
    table = Table(title="Keys")
    for column in ("what", "keys", "such as"):
        table.add_column(column, justify="right" if column == "keys" else "left")
    used = list(converted.used.items())
    renames = [f"{old} -> {new}" if old != new else old for old, new in used[:_EXAMPLES]]
    table.add_row("backbone", str(len(used)), _as_it_is(*renames))
    for reason, count in Counter(converted.left.values()).items():
        examples = [key for key, why in converted.left.items() if why == reason]
        table.add_row(f"left: {reason}", str(count), _as_it_is(*examples[:_EXAMPLES]))
    if converted.file.beside:
        table.add_row(
            "left: no tensors, or another copy",
            str(len(converted.file.beside)),
            _as_it_is(", ".join(converted.file.beside[:6])),
        )
    return table


def architecture(converted: Converted) -> str:
    """Family and sizes, read from names and shapes."""
    try:
        return _architecture(converted)
    except (LookupError, ValueError, TypeError, ArithmeticError):
        return f"{converted.family.name}, of which parts are missing"


def _architecture(converted: Converted) -> str:
    state, family = converted.state, converted.family.name
    if family == "ResNet":
        return _resnet(state)
    if family == "Swin":
        depths = _counts(state, r"stages\.(\d+)\.blocks\.(\d+)\.")
        table = state["stages.0.blocks.0.attn.w_msa.relative_position_bias_table"]
        width = state["stages.0.blocks.0.norm1.weight"].shape[0]
        window = (int(table.shape[0] ** 0.5) + 1) // 2
        return f"Swin, width {width}, depths {depths}, {table.shape[1]} heads in stage 1, window {window}"
    if family == "ViT":
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        registers = f", {state['reg_token'].shape[1]} registers" if "reg_token" in state else ""
        return f"ViT, width {width}, depth {depth}, patch {patch}{registers}"
    return family if family != "other" else "an architecture this does not know"


def _resnet(state: dict[str, Any]) -> str:
    counts = _counts(state, r"layer(\d+)\.(\d+)\.")
    bottleneck = "layer1.0.conv3.weight" in state
    depth = sum(counts) * (3 if bottleneck else 2) + 2
    first = state["layer1.0.conv2.weight"].shape
    grouped = f", groups {first[0] // first[1]}" if first[0] != first[1] else ""
    stem = "" if "conv1.weight" in state else ", deep stem"
    width = state["bn1.weight"].shape[0] if "bn1.weight" in state else first[0]
    return f"ResNet-{depth}, stem width {width}{grouped}{stem}"


def _counts(state: dict[str, Any], pattern: str) -> list[int]:
    pairs = {(int(found[1]), int(found[2])) for name in state if (found := re.match(pattern, name))}
    return [count for _, count in sorted(Counter(stage for stage, _ in pairs).items())]


def fitting_backbones(converted: Converted) -> list[str]:
    """Names of the registry that the file fills."""
    return [
        name
        for name, config in MMDET_BACKBONES.items()
        if config["type"] in converted.family.types and fit(converted, config).complete
    ]


def fitting_detectors(converted: Converted) -> list[str]:
    """Shipped detectors whose backbone the file fills."""
    found = []
    tried: dict[str, bool] = {}
    for name in available_detectors():
        backbone = read_config(shipped_config(name), {}).model.backbone.to_dict()
        if backbone["type"] not in (*converted.family.types, "TimmBackbone"):
            continue
        same = repr(sorted((key, value) for key, value in backbone.items() if key not in _NO_ARCHITECTURE))
        if same not in tried:
            tried[same] = _fits(converted, backbone)
        if tried[same]:
            found.append(name)
    return found


def _fits(converted: Converted, backbone: dict[str, Any]) -> bool:
    try:
        fitted: Fit = fit(converted, backbone)
    except AlignDetError:  # a backbone that cannot be built here
        return False
    return fitted.complete
