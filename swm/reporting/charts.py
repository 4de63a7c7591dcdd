"""Plotly figures from plain data, for pages and report.

Colours: blue means better or accepted, orange worse or rejected, which
colour-blind readers can tell apart. Windows have their own colours. Everything else is grey, to work on light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from swm.reporting.palette import BETTER, WORSE
from swm.search.threshold_path import PlanAt

TALLEST = 20  # times the original's perplexity: models above are broken, and would squeeze the rest together
LINE = "rgba(115,124,140,1)"


def trace_chart(step: PlanAt) -> go.Figure:
    """Similarity of every window tried, in order, and the threshold as a line."""
    figure = go.Figure()
    for accepted, name, colour, symbol in ((True, "accepted", BETTER, "circle"), (False, "rejected", WORSE, "x")):
        trials = [(i, trial) for i, trial in enumerate(step.trace, 1) if trial.accepted == accepted]
        figure.add_scatter(
            x=[i for i, _ in trials],
            y=[trial.similarity for _, trial in trials],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 9},
            text=[
                f"layers {t.window}: similarity {'at most ' if t.at_most else ''}{t.similarity:.4f}<br>"
                + (
                    "grows further down"
                    if accepted
                    else f"below the threshold: next window starts at layer {t.window.first}"
                )
                for _, t in trials
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.add_hline(y=step.threshold, line={"color": LINE, "dash": "dash"})
    return plain_axes(figure, "window tried, in order", "similarity to the original", 320, legend=True)


def loss_chart(events: Sequence[dict[str, Any]]) -> go.Figure:
    """Training loss of each recovery step, and the loss on held-out sequences."""
    figure = go.Figure()
    for key, name, colour, mode in (
        ("loss", "training", BETTER, "lines"),
        ("held_out_loss", "held out", WORSE, "markers"),
    ):
        rows = [event for event in events if key in event]
        figure.add_scatter(
            x=[row["step"] for row in rows],
            y=[row[key] for row in rows],
            name=name,
            mode=mode,
            line={"color": colour},
            marker={"color": colour, "size": 9},
            hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
        )
    return plain_axes(figure, "step", "loss", 300, legend=True)


def plain_axes(figure: go.Figure, x: str, y: str, height: int, legend: bool = False) -> go.Figure:
    """The figure with axis titles, a height and plain axes."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 10, "t": 30 if legend else 10, "b": 45},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": {"text": x}, "zeroline": False},
        yaxis={"title": {"text": y}, "zeroline": False},
    )
    return figure


def log_axis(figure: go.Figure, lowest: float | None) -> None:
    """Give the figure a log axis from the original's perplexity up to TALLEST times that."""
    ticks = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks])
    values = [value for line in figure.data for value in line.y if value is not None]
    if lowest and values:
        top = min(1.3 * max(values), 1.02 * TALLEST * lowest)  # room for error bars, but not for half a marker above
        figure.update_yaxes(range=[math.log10(0.8 * lowest), math.log10(top)])
        for line in figure.data:
            ends = line.error_y.arrayminus
            if ends is not None:  # of a point above the chart, this end would show alone
                line.error_y.arrayminus = [0 if y and y > top else end for y, end in zip(line.y, ends, strict=True)]


def error_bars(intervals: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Error bars of plotly for values with the low and high ends of their intervals."""
    return {
        "array": [high - value for value, _, high in intervals],
        "arrayminus": [value - low for value, low, _ in intervals],
        "thickness": 1.4,
        "width": 4,
    }
