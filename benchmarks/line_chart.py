"""One kind of picture for all benchmarks: lines over a common axis, as an SVG file without a library."""

from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
COLOURS = ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6")
_LEFT, _TOP, _BOTTOM, _LEGEND = 50, 24, 44, 190
# Px of a character of the widest common sans-serif, at the picture's 12 px.
_CHARACTER = 7.2
_Y_TICKS = 5


def line_chart(
    lines: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    top: float,
    families: Mapping[str, str] | None = None,
    width: int = 760,
    height: int = 360,
) -> str:
    """An SVG of ``lines``, name to (x, y) points; both axes begin at 0, y ends at ``top``. Long names make it wider.

    families: of some lines by name; those of one share a colour, and the first of several is dashed.
    """
    family_of = [(families or {}).get(name, name) for name in lines]
    known = list(dict.fromkeys(family_of))
    right, floor = width - _LEGEND, height - _BOTTOM
    longest = max(map(len, lines), default=0)
    width = max(width, round(right + 14 + _CHARACTER * longest))
    end = max((x for points in lines.values() for x, _ in points), default=1.0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (right - _LEFT) * x / end, floor - (floor - _TOP) * min(y, top) / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for value in (top * tick / _Y_TICKS for tick in range(_Y_TICKS + 1)):
        _, y = place(0, value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:g}", "end"))
    x_ticks = next(
        (count for count in (6, 5, 4, 3) if end % count == 0), 5
    )  # whole numbers where there are any
    for value in (end * tick / x_ticks for tick in range(x_ticks + 1)):
        parts.append(_text(place(value, 0)[0], floor + 18, f"{value:g}", "middle"))
    parts.append(_text(_LEFT, _TOP - 8, y_label, "start"))
    parts.append(_text(right, floor + 36, x_label, "end"))
    for number, (name, points) in enumerate(lines.items()):
        family = family_of[number]
        colour = COLOURS[known.index(family) % len(COLOURS)]
        first = family_of.count(family) > 1 and family not in family_of[:number]
        dashes = ' stroke-dasharray="5 4"' if first else ""
        drawn = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts.append(_text(right + 14, _TOP + 20 + 20 * number, name, "start", colour))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
