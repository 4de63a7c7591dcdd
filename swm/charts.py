"""Plotly figures from plain data; the pages and the report draw the same ones.

Colours: similarity is always cividis from 0 to 1. Blue is better or accepted, orange worse or rejected; colour-blind
readers can tell them apart. Windows have colours of their own. All else is grey: it has to work on light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from swm.paired import VERDICTS, Paired
from swm.path import PlanAt, ThresholdPath
from swm.plan import Window
from swm.view import BETTER, WINDOW_COLOURS, WORSE

ERROR_BAR = "rgba(90,98,112,1)"
LINE = "rgba(115,124,140,1)"
COLOURS = (
    BETTER, WORSE, "#00835f", "#b5568c", "#a6761d", "#7b68b5", "#17a2a2", "#8a8f98", "#d94a4a", "#5c6b1f",
    "#4fb0e8", "#e0a30b", "#7bb661", "#c77dba",
)  # fmt: skip
TALLEST = 20  # times the original's perplexity: what lies above is broken, and would press the rest together
SYMBOLS = ("circle", "diamond", "x")
COLOUR_BAR = {"orientation": "h", "thickness": 10, "outlinewidth": 0, "len": 0.6, "y": -0.1, "yanchor": "top"}


def similarity_heatmap(
    matrix: Sequence[Sequence[float]],
    name: str,
    windows: Sequence[Window] = (),
    patches: Sequence[Window] = (),
    pair: tuple[int, int] | None = None,
) -> go.Figure:
    """Similarity of all layer pairs, layer 0 in the lower left corner.

    Windows are outlined in their colours, patches dashed, the chosen pair ringed. Plotly tells of clicks on
    points alone, so each cell has one that is not seen.
    """
    count = len(matrix)
    layers = list(range(count))
    figure = go.Figure(
        go.Heatmap(
            z=[[round(value, 4) for value in row] for row in matrix],
            x=layers,
            y=layers,
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            colorbar={
                **COLOUR_BAR,
                "title": {"text": name, "side": "bottom"},
                "tickvals": [0, 0.25, 0.5, 0.75, 1],
            },
            hoverinfo="skip",
        )
    )
    for patch in patches:
        low, high = patch.first - 0.5, patch.last + 0.5
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line={"color": "white", "width": 3})
        dashed = {"color": "black", "width": 1.5, "dash": "dot"}
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line=dashed)
    cells = [(x, y) for y in layers for x in layers]
    figure.add_scatter(
        x=[x for x, _ in cells],
        y=[y for _, y in cells],
        mode="markers",
        marker={"symbol": "square", "size": max(3, 420 // count), "opacity": 0},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=[round(matrix[y][x], 4) for x, y in cells],
        hovertemplate="layer %{y} and layer %{x}<br>" + name + " %{customdata:.4f}<extra></extra>",
        showlegend=False,
    )
    if pair:
        ring = {"symbol": "square-open", "size": max(8, 420 // count), "color": "white", "line": {"width": 3}}
        figure.add_scatter(x=pair, y=pair[::-1], mode="markers", marker=ring, hoverinfo="skip", showlegend=False)
    for index, window in enumerate(windows):
        low, high = window.first - 0.5, window.last + 0.5
        colour = WINDOW_COLOURS[index % len(WINDOW_COLOURS)]
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line={"color": "white", "width": 4})
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line={"color": colour, "width": 2})
    return _square(figure, count)


def difference_heatmap(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], names: str) -> go.Figure:
    """First minus second similarity of all layer pairs: blue where the first is higher, orange where the second is."""
    values = [[round(a - b, 4) for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
    most = max(max(map(abs, row)) for row in values) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=values,
            zmin=-most,
            zmax=most,
            colorscale=[[0, WORSE], [0.5, "#f2f2f2"], [1, BETTER]],
            colorbar={**COLOUR_BAR, "title": {"text": names, "side": "bottom"}},
            hovertemplate="layer %{y} and layer %{x}<br>difference %{z:+.4f}<extra></extra>",
        )
    )
    return _square(figure, len(values))


def _square(figure: go.Figure, count: int) -> go.Figure:
    axis = {"title": {"text": "layer"}, "range": [-0.5, count - 0.5], "showgrid": False, "zeroline": False}
    figure.update_layout(
        xaxis={**axis, "constrain": "domain"},
        yaxis={**axis, "scaleanchor": "x", "constrain": "domain"},
        height=600,
        margin={"l": 40, "r": 0, "t": 0, "b": 95},
        dragmode=False,
    )
    return figure


def depth_lines(similarity_to_next: Sequence[float], block_influence: Sequence[float]) -> go.Figure:
    """Along the depth: similarity to the next layer, and how much each layer changes its input."""
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(len(similarity_to_next))),
        y=list(similarity_to_next),
        name="similarity to the next layer",
        mode="lines+markers",
        line={"color": BETTER},
        hovertemplate="layer %{x}: %{y:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=list(range(len(block_influence))),
        y=list(block_influence),
        name="block influence",
        mode="lines+markers",
        line={"color": WORSE, "dash": "dot"},
        hovertemplate="layer %{x}: %{y:.4f}<extra></extra>",
    )
    return _plain(figure, "layer", "", 300, legend=True)


def norm_line(norms: Sequence[float]) -> go.Figure:
    """Mean length of a token's state after each layer."""
    figure = go.Figure(
        go.Bar(
            x=list(range(len(norms))),
            y=list(norms),
            marker_color=LINE,
            hovertemplate="layer %{x}: %{y:,.0f}<extra></extra>",
        )
    )
    return _plain(figure, "layer", "mean length of a token's state", 260)


def trace_chart(step: PlanAt) -> go.Figure:
    """Every window tried, in order, against the threshold."""
    figure = go.Figure()
    for accepted, name, colour, symbol in ((True, "accepted", BETTER, "circle"), (False, "rejected", WORSE, "x")):
        chosen = [(i, trial) for i, trial in enumerate(step.trace, 1) if trial.accepted == accepted]
        figure.add_scatter(
            x=[i for i, _ in chosen],
            y=[trial.similarity for _, trial in chosen],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 9},
            text=[
                f"layers {t.window}: similarity {'at most ' if t.at_most else ''}{t.similarity:.4f}<br>"
                + ("grows further down" if accepted else f"below the threshold: layer {t.window.first} starts anew")
                for _, t in chosen
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.add_hline(y=step.threshold, line={"color": LINE, "dash": "dash"})
    return _plain(figure, "window tried, in order", "similarity to the original", 320, legend=True)


def loss_chart(events: Sequence[dict[str, Any]]) -> go.Figure:
    """Loss of each recovery step, and on the held-out sequences."""
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
    return _plain(figure, "step", "loss", 300, legend=True)


def scores_chart(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> go.Figure:
    """Accuracy by task with standard errors, one group of bars for each task."""
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
    return _plain(figure, "", "accuracy, %", 340, legend=True)


def score_against_speed(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> go.Figure:
    """Average score against tokens per second; the line joins the rows that no other beats in both (Pareto front)."""
    placed = [
        (row["tokens_per_second"], 100 * row["average"], 100 * row["average_stderr"], name)
        for row, name in zip(rows, names, strict=True)
        if row["tokens_per_second"] and row["average"] is not None
    ]
    best = [p for p in placed if not any(q[0] >= p[0] and q[1] >= p[1] and q[:2] != p[:2] for q in placed)]
    best.sort()
    middle = sum(p[0] for p in placed) / max(1, len(placed))  # names stand on the side that has room
    figure = go.Figure()
    figure.add_scatter(
        x=[p[0] for p in best],
        y=[p[1] for p in best],
        mode="lines",
        line={"color": LINE, "dash": "dot"},
        name="not beaten in both",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[p[0] for p in placed],
        y=[p[1] for p in placed],
        error_y={"array": [p[2] for p in placed], "thickness": 1.4, "width": 4, "color": ERROR_BAR},
        mode="markers+text",
        text=[p[3] for p in placed],
        textposition=["middle left" if p[0] > middle else "middle right" for p in placed],
        marker={"color": [BETTER if p in best else WORSE for p in placed], "size": 10},
        hovertemplate="%{text}<br>%{x:.1f} tokens per second, %{y:.1f} %<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )
    return _plain(figure, "tokens per second", "average accuracy, %", 340, legend=True)


def depths_chart(rows: Sequence[dict[str, Any]], figure_of: str) -> go.Figure:
    """One figure of every method against the layers left, with its error bars; dashed after LoRA.

    Args:
        rows: of `compare.study_rows`. figure_of: "average", or a text for perplexity (drawn on a log axis).
    """
    figure, original = go.Figure(), next((row for row in rows if row["method"] == "original"), None)
    lines: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in rows:
        if row is not original and _studied(row, figure_of):
            lines.setdefault((row["method"], row["stage"] == "recovered"), []).append(row)
    methods = list(dict.fromkeys(method for method, _ in lines))
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    symbols = {method: SYMBOLS[i // len(COLOURS) % len(SYMBOLS)] for i, method in enumerate(methods)}
    for (method, healed), points in lines.items():
        values = [value for row in points if (value := _studied(row, figure_of))]
        name = f"{method}{' + LoRA' if healed else ''}"
        figure.add_scatter(
            x=[row["layers"] for row in points],
            y=[value for value, _, _ in values],
            error_y={
                "array": [high - value for value, _, high in values],
                "arrayminus": [value - low for value, low, _ in values],
                "thickness": 1.4,
                "width": 4,
            },
            mode="lines+markers",
            name=name,
            line={"color": colours[method], "dash": "dot" if healed else "solid"},
            marker={"size": 8, "symbol": symbols[method]},
            hovertemplate="%{x} layers: %{y:,.1f}<extra>" + name + "</extra>",
        )
    level = original and _studied(original, figure_of)
    if level:
        figure.add_hline(y=level[0], line={"color": LINE, "dash": "dash"})
        figure.add_annotation(  # plotly places an annotation on a log axis by the logarithm
            x=0.5, xref="paper", xanchor="center", yanchor="top", text="original", font={"color": LINE},
            showarrow=False, y=level[0] if figure_of == "average" else math.log10(level[0]),
        )  # fmt: skip
    title = "average accuracy, %" if figure_of == "average" else f"perplexity, {figure_of}"
    figure = _plain(figure, "layers left", title, 420, legend=True)
    figure.update_xaxes(autorange="reversed", tickvals=sorted({row["layers"] for row in rows if row is not original}))
    if figure_of != "average":
        _log_axis(figure, level[0] if level else None)
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"})
    return figure


def _log_axis(figure: go.Figure, lowest: float | None) -> None:
    """Perplexities on a log axis, from the original's up to TALLEST times that."""
    ticks = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks])
    values = [value for line in figure.data for value in line.y]
    if lowest and values:
        highest = min(max(values), TALLEST * lowest)
        figure.update_yaxes(range=[math.log10(0.8 * lowest), math.log10(1.15 * highest)])


def _studied(row: dict[str, Any], figure_of: str) -> tuple[float, float, float] | None:
    """Value, low and high of a row's figure: one standard error of the average, the 95 % interval of perplexity."""
    if figure_of == "average":
        value, stderr = row["average"], row["average_stderr"]
        return None if value is None else (100 * value, 100 * (value - stderr), 100 * (value + stderr))
    entry = row["perplexities"].get(figure_of)
    return entry and (entry["value"], entry["low"], entry["high"])


def staircase_chart(paths: Sequence[ThresholdPath], figure_of: str) -> go.Figure:
    """Layers left, or perplexity on the calibration text, against threshold: one line for each merge rule."""
    figure = go.Figure()
    for index, path in enumerate(paths):
        steps = [step for step in path.intervals() if figure_of == "layers" or step.perplexity is not None]
        x: list[float | None] = []
        y: list[float | None] = []
        for step in steps:
            if x and x[-1] != step.high:  # what lies between is not computed
                x, y = [*x, None], [*y, None]
            value = step.plan.layers_left if figure_of == "layers" else step.perplexity
            x, y = [*x, step.high, step.low], [*y, value, value]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=path.rule,
            line={"color": COLOURS[index % len(COLOURS)], "width": 2},
            hovertemplate="%{x:.3f}: %{y:,.1f}<extra>" + path.rule + "</extra>",
        )
    title = "layers left" if figure_of == "layers" else "perplexity of the calibration text"
    figure = _plain(figure, "threshold", title, 380, legend=True)
    figure.update_yaxes(type="linear" if figure_of == "layers" else "log")
    return figure


def threshold_scores_chart(scores: Sequence[dict[str, Any]]) -> go.Figure:
    """Score of the plans at some thresholds with its standard error: one line for each merge rule.

    Args:
        scores: rows with `rule`, `threshold`, `layers`, `task`, `value` and `stderr`, as a study of thresholds keeps.
    """
    figure = go.Figure()
    for index, rule in enumerate(dict.fromkeys(row["rule"] for row in scores)):
        rows = sorted((row for row in scores if row["rule"] == rule), key=lambda row: row["threshold"])
        figure.add_scatter(
            x=[row["threshold"] for row in rows],
            y=[100 * row["value"] for row in rows],
            error_y={"array": [100 * row["stderr"] for row in rows], "thickness": 1.4, "width": 4},
            customdata=[row["layers"] for row in rows],
            mode="lines+markers",
            name=rule,
            line={"color": COLOURS[index % len(COLOURS)]},
            marker={"size": 8},
            hovertemplate="%{x:.2f}, %{customdata} layers: %{y:.1f} %<extra>" + rule + "</extra>",
        )
    return _plain(figure, "threshold", f"{scores[0]['task']}, %" if scores else "", 380, legend=True)


def differences_chart(compared: Sequence[Paired]) -> go.Figure:
    """Difference on each task with its 95 % interval; grey where it is no more than noise."""
    figure = go.Figure()
    for verdict, colour in zip(VERDICTS, (LINE, BETTER, WORSE), strict=True):
        rows = [one for one in compared if one.verdict == verdict]
        figure.add_scatter(
            x=[100 * one.difference for one in rows],
            y=[one.task for one in rows],
            error_x={
                "array": [100 * (one.high - one.difference) for one in rows],
                "thickness": 2,
                "width": 5,
                "color": colour,
            },
            mode="markers",
            name=verdict,
            marker={"color": colour, "size": 9},
            customdata=[(one.p_value, one.gained, one.lost) for one in rows],
            hovertemplate="%{y}: %{x:+.1f} points<br>p = %{customdata[0]:.3f}, %{customdata[1]} gained, "
            "%{customdata[2]} lost<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": LINE, "width": 1})
    figure.update_yaxes(categoryorder="array", categoryarray=[one.task for one in reversed(compared)])
    return _plain(figure, "difference, points", "", 80 + 34 * len(compared), legend=True)


def _plain(figure: go.Figure, x: str, y: str, height: int, legend: bool = False) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 10, "t": 30 if legend else 10, "b": 45},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": {"text": x}, "zeroline": False},
        yaxis={"title": {"text": y}, "zeroline": False},
    )
    return figure
