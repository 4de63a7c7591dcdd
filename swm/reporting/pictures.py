"""Pictures of the HTML report, as SVG without a script: a map of layers, differences with their intervals, a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from plotly.colors import sample_colorscale

from swm.plan import Window
from swm.reporting.palette import BETTER, WINDOW_COLOURS, WORSE

GREY, LINE = "#5b6575", "#e3e7ee"
SHADES = 64  # colours of a map: what is alike shares one rectangle


def map_picture(matrix: Sequence[Sequence[float]], windows: Sequence[Window] = ()) -> Markup:
    """Similarity of all layer pairs from 0 (dark) to 1 (bright), layer 0 in the lower left corner; windows outlined."""
    count = len(matrix)
    cell, left = 420 / count, 34
    shades = sample_colorscale("Cividis", [shade / (SHADES - 1) for shade in range(SHADES)])
    parts = []
    for y, row in enumerate(matrix):
        start = 0
        levels = [round((SHADES - 1) * min(1.0, max(0.0, value))) for value in row]
        for x in range(1, count + 1):
            if x == count or levels[x] != levels[start]:
                box = _box(left + start * cell, (count - 1 - y) * cell, (x - start) * cell, cell)
                parts.append(f'<rect {box} fill="{shades[levels[start]]}"/>')
                start = x
    for index, window in enumerate(windows):
        low, high = max(window.first, 0), window.last + 1
        box = _box(left + low * cell, (count - high) * cell, (high - low) * cell, (high - low) * cell)
        colour = WINDOW_COLOURS[index % len(WINDOW_COLOURS)]
        parts.append(f'<rect {box} fill="none" stroke="#fff" stroke-width="4"/>')
        parts.append(f'<rect {box} fill="none" stroke="{colour}" stroke-width="2"/>')
    for layer in range(0, count, max(1, round(count / 6 / 5) * 5)):
        middle = (layer + 0.5) * cell
        parts.append(_text(left + middle, 436, str(layer), "middle"))
        parts.append(_text(left - 6, 420 - middle + 4, str(layer), "end"))
    return _svg(left + 421, 444, parts)


class Interval(NamedTuple):
    """A difference with the ends of its 95 % interval, and what it means: "better", "worse" or neither."""

    label: str
    value: float
    low: float
    high: float
    verdict: str


def intervals_picture(intervals: Sequence[Interval], unit: str) -> Markup:
    """Differences with their intervals, and a line at 0: blue better, orange worse, grey undecided."""
    reach = 1.05 * max(abs(end) for each in intervals for end in (each.low, each.high)) or 1.0
    left, width, step = 130, 300, 22

    def x(value: float) -> float:
        return left + width * (value + reach) / (2 * reach)

    height = step * len(intervals)
    parts = [f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height}" stroke="{GREY}"/>']
    for place, each in enumerate(intervals):
        y = step * (place + 0.5)
        colour = {"better": BETTER, "worse": WORSE}.get(each.verdict, GREY)
        parts.append(_text(left - 10, y + 4, each.label, "end"))
        parts.append(f'<path d="M{x(each.low):.1f},{y}H{x(each.high):.1f}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(each.value):.1f}" cy="{y}" r="4" fill="{colour}"/>')
    for end, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end")):
        parts.append(_text(x(end), height + 16, f"{end:+.2g}" if end else f"0 {unit}", anchor))
    return _svg(left + width + 8, height + 22, parts)


def loss_picture(events: Sequence[dict[str, Any]]) -> Markup:
    """Training loss of each step as a line, loss on held-out sequences as dots; empty without steps."""
    points = {key: [(e["step"], e[key]) for e in events if math.isfinite(e.get(key, math.nan))] for key in LOSSES}
    if not points["loss"]:
        return Markup("")
    values = [value for found in points.values() for _, value in found]
    low, high = min(values), max(values)
    last = max(step for step, _ in points["loss"])
    left, width, height = 44, 560, 180

    def place(step: float, value: float) -> str:
        return f"{left + width * step / last:.1f},{height * (high - value) / (high - low or 1.0):.1f}"

    line = " ".join(place(*point) for point in points["loss"])
    parts = [f'<polyline points="{line}" fill="none" stroke="{BETTER}" stroke-width="1.5"/>']
    for point in points["held_out_loss"]:
        x, y = place(*point).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{WORSE}"/>')
    parts += [_text(left - 6, 10, f"{high:.2f}", "end"), _text(left - 6, height, f"{low:.2f}", "end")]
    parts += [_text(left, height + 18, "step 0", "start"), _text(left + width, height + 18, f"{last:,}", "end")]
    return _svg(left + width + 8, height + 24, parts)


LOSSES = ("loss", "held_out_loss")


def _box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return str(Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text))


def _svg(width: float, height: float, parts: Sequence[str]) -> Markup:
    start = f'<svg class="picture" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">'
    return Markup(start + "".join(parts) + "</svg>")  # noqa: S704 - numbers, and texts escaped by Markup
