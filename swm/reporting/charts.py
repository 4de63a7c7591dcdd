"""Plotly figures from plain data, for pages and report.

Colours: blue means better or accepted, orange worse or rejected, which
colour-blind readers can tell apart. Windows have their own colours. Everything else is grey, to work on light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from swm.evaluation.paired import ACCURACY, VERDICTS, Paired
from swm.reporting.glossary import FORMS, UNITS
from swm.reporting.palette import BETTER, WINDOW_COLOURS, WORSE
from swm.search.threshold_path import PlanAt

ERROR_BAR = "rgba(90,98,112,1)"
LINE = "rgba(115,124,140,1)"


def neighbour_line(similarity_to_next: Sequence[float]) -> go.Figure:
    """Similarity of each layer to the next one."""
    return plain_axes(_depth_lines({"": similarity_to_next}), "layer", "similarity to the next", 230)


def influence_lines(influences: dict[str, Sequence[float]]) -> go.Figure:
    """How much each layer and its parts change the hidden state, by name; logarithmic, since the first layers change it
    hundreds of times as much."""
    figure = plain_axes(_depth_lines(influences), "layer", "influence", 280, legend=True)
    return figure.update_layout(yaxis={"type": "log", "exponentformat": "none", "dtick": 1})


def _depth_lines(lines: dict[str, Sequence[float]]) -> go.Figure:
    figure = go.Figure()
    for (name, values), colour in zip(lines.items(), (BETTER, *WINDOW_COLOURS[1:3]), strict=False):
        figure.add_scatter(
            x=list(range(len(values))),
            y=list(values),
            name=name,
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 5},
            hovertemplate=f"layer %{{x}}: %{{y:.4f}}<extra>{name}</extra>",
        )
    return figure


def norm_line(norms: Sequence[float]) -> go.Figure:
    """Mean norm of the hidden states after each layer."""
    figure = go.Figure(
        go.Bar(
            x=list(range(len(norms))),
            y=list(norms),
            marker_color=LINE,
            hovertemplate="layer %{x}: %{y:,.0f}<extra></extra>",
        )
    )
    return plain_axes(figure, "layer", "norm of hidden states", 230)


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


def scores_chart(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> go.Figure:
    """Accuracy with standard errors: a group of bars for each task, a bar for each row."""
    colours = (LINE, WORSE, BETTER, *WINDOW_COLOURS)
    figure = go.Figure()
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        tasks = list(row["scores"])
        figure.add_bar(
            x=tasks,
            y=[100 * row["scores"][task]["value"] for task in tasks],
            name=name,
            marker_color=colours[index % len(colours)],
            error_y={
                "array": [100 * row["scores"][t]["stderr"] for t in tasks],
                "thickness": 1.4,
                "width": 4,
                "color": ERROR_BAR,
            },
            hovertemplate="%{x}: %{y:.1f} %<extra>" + name + "</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25)
    return plain_axes(figure, "", "accuracy, %", 340, legend=True)


def score_against_speed(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> go.Figure:
    """Average score against tokens per second, with the Pareto front: the rows that no other beats in both."""
    points = [
        (row["tokens_per_second"], 100 * row["average"], 100 * row["average_stderr"], name)
        for row, name in zip(rows, names, strict=True)
        if row["tokens_per_second"] and row["average"] is not None
    ]
    front = [p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q[:2] != p[:2] for q in points)]
    front.sort()
    middle = sum(p[0] for p in points) / max(1, len(points))  # names go to the side with more room
    figure = go.Figure()
    figure.add_scatter(
        x=[p[0] for p in front],
        y=[p[1] for p in front],
        mode="lines",
        line={"color": LINE, "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[p[0] for p in points],
        y=[p[1] for p in points],
        error_y={"array": [p[2] for p in points], "thickness": 1.4, "width": 4, "color": ERROR_BAR},
        mode="markers+text",
        text=[p[3] for p in points],
        textposition=["middle left" if p[0] > middle else "middle right" for p in points],
        marker={"color": [BETTER if p in front else WORSE for p in points], "size": 10},
        hovertemplate="%{text}<br>%{x:.1f} tokens per second, %{y:.1f} %<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )
    return plain_axes(figure, "tokens per second", "average accuracy, %", 340, legend=True)


def differences_chart(compared: Sequence[Paired]) -> go.Figure:
    """Difference on each task with its 95 % interval; grey if not significant or of too few documents."""
    score = compared[0].score if compared else ACCURACY
    figure, unit, factor = go.Figure(), UNITS[score], FORMS[score][0]
    for verdict, colour in zip(VERDICTS, (LINE, BETTER, WORSE, LINE), strict=True):
        rows = [row for row in compared if row.verdict == verdict]
        figure.add_scatter(
            x=[factor * row.difference for row in rows],
            y=[row.task for row in rows],
            error_x={
                "array": [factor * (row.high - row.difference) for row in rows],
                "arrayminus": [factor * (row.difference - row.low) for row in rows],
                "thickness": 2,
                "width": 5,
                "color": colour,
            },
            mode="markers",
            name=verdict,
            marker={"color": colour, "size": 9},
            customdata=[(row.p_value, row.gained, row.lost) for row in rows],
            hovertemplate="%{y}: %{x:+.3~f} " + unit + "<br>p = %{customdata[0]:.3f}, %{customdata[1]} gained, "
            "%{customdata[2]} lost<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": LINE, "width": 1})
    figure.update_yaxes(categoryorder="array", categoryarray=[row.task for row in reversed(compared)])
    return plain_axes(figure, f"difference ({unit})", "", 80 + 34 * len(compared), legend=True)


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
