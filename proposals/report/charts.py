"""Small charts as inline SVG; colours and type come from the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape

from proposals.report.numbers import Histogram

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 352, 14, 160


def bars(histogram: Histogram, unit: str, *, fractions: bool = False) -> str:
    """A histogram as bars; ``unit`` names the values, ``fractions`` labels an aspect axis 1/8 .. 8."""
    counts, edges = histogram.counts, histogram.edges
    tallest, total, step = max(counts, default=0), sum(counts), (_RIGHT - _LEFT) / max(len(counts), 1)
    if not total:
        return '<p class="empty">Nothing to show: no boxes.</p>'
    label = _fraction if fractions else _short
    shapes = []
    for i, count in enumerate(counts):
        height = (_BOTTOM - _TOP) * count / tallest
        tip = f"{label(edges[i])} to {label(edges[i + 1])} {unit}: {count:,} ({count / total:.1%})"
        shapes.append(
            f'<rect class="bar" x="{_LEFT + i * step + 0.75:.1f}" y="{_BOTTOM - height:.1f}" '
            f'width="{max(step - 1.5, 0.5):.1f}" height="{height:.1f}" rx="1.5">'
            f"<title>{escape(tip)}</title></rect>"
        )
    stride = 4 if fractions else max(1, round(len(counts) / 5))  # an octave is four bins
    ticks = [
        _text(_LEFT + i * step, _BOTTOM + 18, label(edges[i]), _anchor(i, len(counts)))
        for i in range(0, len(edges), stride)
    ]
    return _svg([*shapes, _line(_BOTTOM), *ticks], f"Histogram of {unit}")


def curves(xs: Sequence[str], lines: Sequence[tuple[str, Sequence[float]]], caption: str, x_name: str) -> str:
    """Lines over evenly spaced positions named ``xs``; values are shares in [0, 1], nan leaves a gap."""
    left, right = _LEFT + 30, _RIGHT - 8
    values = [value for _, line in lines for value in line if not math.isnan(value)]
    top = min(1.0, math.ceil(max(values, default=0.1) * 5 + 0.001) / 5)
    place = [left + (right - left) * i / max(len(xs) - 1, 1) for i in range(len(xs))]
    shapes = []
    for part in range(5):
        y = _BOTTOM - (_BOTTOM - _TOP) * part / 4
        shapes += [_line(y, left), _text(left - 6, y + 4, f"{100 * top * part / 4:.3g}", "end")]
    shapes += [_text(x, _BOTTOM + 18, name, "middle") for x, name in zip(place, xs, strict=True)]
    for number, (name, line) in enumerate(lines):
        dots = [
            (x, _BOTTOM - (_BOTTOM - _TOP) * value / top, value, at)
            for x, value, at in zip(place, line, xs, strict=True)
            if not math.isnan(value)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in dots)
        shapes.append(f'<polyline class="curve c{number}" points="{path}"/>')
        shapes += [
            f'<circle class="dot c{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
            f"<title>{escape(f'{name}, {x_name} {at}: {value:.1%}')}</title></circle>"
            for x, y, value, at in dots
        ]
    keys = "".join(
        f'<span class="key c{number}">{escape(name)}</span>' for number, (name, _) in enumerate(lines)
    )
    return f'{_svg(shapes, caption)}<p class="keys">{keys}</p>'


def _svg(shapes: Sequence[str], name: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
        f"{''.join(shapes)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(y: float, left: float = _LEFT) -> str:
    return f'<line class="rule" x1="{left}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _anchor(place: int, last: int) -> str:
    return "start" if place == 0 else "end" if place == last else "middle"


def _short(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 10_000 else f"{value:.4g}"


def _fraction(value: float) -> str:
    return f"{value:.3g}" if value >= 1 else f"1/{1 / value:.3g}"
