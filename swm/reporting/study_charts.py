"""Plotly figures for studies: every method against depth, every merge rule against threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB, SCORES
from swm.plan import DEFAULT_RULE, WIDTH_METHODS
from swm.reporting.charts import LINE, error_bars, log_axis, plain_axes
from swm.reporting.glossary import method_name
from swm.reporting.names import text_name
from swm.reporting.palette import method_colour
from swm.reporting.row import Row, percent_interval
from swm.search.threshold_path import ThresholdPath

AXES = {
    "accuracy": "average accuracy, %",
    "choice_logprob": "average choice log-probability, nats",
    "bits_per_byte": "average bits per byte of the right answer",
}
SHORTEST = 0.003  # a range of thresholds below this is too short to see as a line, and gets a dot
STAGES = ("merged", "recovered")
UPWARDS = (ACCURACY, CHOICE_LOGPROB)  # higher is better
SYMBOLS = ("circle", "diamond", "square", "triangle-up")
GREY = "rgba(138,143,152,0.55)"
HEIGHT, NAMES_WIDTH, LINE_HEIGHT = 400, 235, 16  # pixels


def depths_chart(rows: Sequence[Row], figure_of: str, most: int = 5) -> go.Figure:
    """One number of every method against the layers left, with error bars; dotted lines after LoRA.

    Args:
        rows: from `studies.rows.study_rows`.
        figure_of: one of SCORES (averages over tasks), or the text of a perplexity (drawn on a log axis).
        most: this many methods, the best, are in colour with their names, and so is the paper's; the others are grey.
    """
    figure, original = go.Figure(), next((row for row in rows if row.method == "original"), None)
    lines: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        if row is not original and studied(row, figure_of):
            lines.setdefault((row.method or "", row.stage == "recovered"), []).append(row)
    ranked = best_methods(rows, figure_of)
    best = [method for place, method in enumerate(ranked) if place < most or method.split(" + ")[0] == DEFAULT_RULE]
    for (_, healed), points in sorted(lines.items(), key=lambda line: line[0][0] in best):  # colours on top
        _add_line(figure, points, healed, figure_of, best)
    level = original and studied(original, figure_of)
    if level:
        figure.add_hline(y=level[0], line={"color": LINE, "dash": "dash"})
        figure.add_annotation(  # plotly places an annotation on a log axis by the logarithm
            x=0.5, xref="paper", xanchor="center", yanchor="top", text="original", font={"color": LINE},
            showarrow=False, y=level[0] if figure_of in SCORES else math.log10(level[0]),
        )  # fmt: skip
    title = AXES.get(figure_of, f"perplexity, {text_name(figure_of)}")
    figure = plain_axes(figure, "layers left", title, HEIGHT)
    figure.update_xaxes(autorange="reversed", tickvals=sorted({row.layers for row in rows if row is not original}))
    if figure_of not in SCORES:
        log_axis(figure, level[0] if level else None)
    else:
        values = [end for row in rows if (value := studied(row, figure_of)) for end in value[1:]]
        room = 0.05 * (max(values) - min(values)) or 1.0
        figure.update_yaxes(range=[min(values) - room, max(values) + room])
    _name_lines(figure, log=figure_of not in SCORES)
    return figure.update_layout(margin={"r": NAMES_WIDTH, "t": 10})


def _name_lines(figure: go.Figure, log: bool) -> None:
    """Names of the coloured lines at their last points, moved apart where they would lie on each other."""
    low, high = figure.layout.yaxis.range
    room = HEIGHT - figure.layout.margin.b - 10
    ends = []
    for line in figure.data:
        if line.line.color != GREY:
            value = math.log10(line.y[-1]) if log else line.y[-1]
            ends.append((room * (value - low) / (high - low), value, line))
    ends.sort(key=lambda end: -end[0])
    top = float(room)
    below = [LINE_HEIGHT * place for place in range(len(ends), 0, -1)]  # room that the names below need
    for (place, value, line), needed in zip(ends, below, strict=True):
        top = max(min(place, top - LINE_HEIGHT / 2), needed - LINE_HEIGHT / 2)
        figure.add_annotation(
            x=line.x[-1],
            y=min(value, high),
            text=line.name + (" (above)" if value > high else ""),
            font={"color": line.line.color, "size": 12},
            showarrow=False,
            xanchor="left",
            yanchor="middle",
            xshift=9,
            yshift=top - min(place, room),
        )
        top -= LINE_HEIGHT / 2


def _add_line(figure: go.Figure, points: Sequence[Row], healed: bool, figure_of: str, best: Sequence[str]) -> None:
    """A method's line over depths: in colour with error bars if it is among the best, otherwise grey."""
    method = points[0].method or ""
    shown = method in best
    values = [value for row in points if (value := studied(row, figure_of))]
    how = f" + {points[0].healed_by or 'LoRA'}" if healed else ""
    name = f"control: original{how}" if points[0].control else f"{method_name(method)}{how}"
    figure.add_scatter(
        x=[row.layers for row in points],
        y=[value for value, _, _ in values],
        error_y={**error_bars(values), "visible": shown},
        mode="lines+markers",
        name=name,
        cliponaxis=True,
        line={
            "color": method_colour(method) if shown else GREY,
            "dash": "dot" if healed else "solid",
            "width": 2 if shown else 1,
        },
        marker={"size": 8 if shown else 4, "symbol": _symbol(method) + ("" if healed else "-open")},
        hovertemplate="%{x} layers: %{y:,.4~r}<extra>" + name + "</extra>",
    )


def _symbol(method: str) -> str:
    """The marker of a method: its colour is that of its choice of layers, its form that of its width cut, if any; it is
    filled once the model is healed."""
    cut = method.partition(" + ")[2]
    return SYMBOLS[1 + list(WIDTH_METHODS).index(cut)] if cut in WIDTH_METHODS else SYMBOLS[0]


def best_methods(rows: Sequence[Row], figure_of: str) -> list[str]:
    """The methods by their mean rank over depths and stages that they share with others; the best first."""
    ranks: dict[str, list[float]] = {}
    for layers, stage in sorted({(row.layers, row.stage) for row in rows}):
        here = [row for row in rows if (row.layers, row.stage) == (layers, stage) and row.method != "original"]
        for method, rank in (places := _ranks(here, figure_of)).items():
            ranks.setdefault(method, []).append((rank - 1) / max(1, len(places) - 1))
    return sorted(ranks, key=lambda method: (sum(ranks[method]) / len(ranks[method]), method))


def ranks_chart(rows: Sequence[Row], figure_of: str) -> go.Figure | None:
    """Each method's rank before and after healing, joined by a line; one panel for each number of layers.

    None if no two methods have both at the same depth.
    """
    depths = sorted({row.layers for row in rows}, reverse=True)
    panels = {layers: panel for layers in depths if len(panel := _ranks_at(rows, layers, figure_of)) > 1}
    if not panels:
        return None
    figure = make_subplots(1, len(panels), subplot_titles=[f"{layers} layers" for layers in panels], shared_yaxes=True)
    for column, panel in enumerate(panels.values(), 1):
        for method, ends in panel.items():
            colour = method_colour(method)
            together = sorted(other for other, (_, after) in panel.items() if after == ends[1])
            label = " = ".join(map(method_name, together)) if method == together[0] else ""
            figure.add_scatter(
                x=["before", "after healing"],
                y=ends,
                mode="lines+markers+text",
                text=["", label],
                textposition="middle right",
                line={"color": colour},
                marker={"size": 9},
                hovertemplate="%{x}: rank %{y}<extra>" + method_name(method) + "</extra>",
                row=1,
                col=column,
            )
    most = max(len(panel) for panel in panels.values())
    plain_axes(figure, "", "", 130 + 42 * most).update_layout(margin={"t": 40})
    figure.update_yaxes(range=[most + 0.5, 0.5], tickvals=list(range(1, most + 1)), title_text="")
    figure.update_yaxes(title_text="rank", col=1)
    longest = max(len(trace.text[1]) for trace in figure.data)
    return figure.update_xaxes(range=[-0.25, 1.3 + 0.08 * longest], title_text="")


def _ranks_at(rows: Sequence[Row], layers: int, figure_of: str) -> dict[str, tuple[int, int]]:
    """The ranks before and after healing of the methods that have both at this depth."""
    here = [row for row in rows if row.layers == layers and not row.control and row.method != "original"]
    stages = [[row for row in here if row.stage == stage] for stage in STAGES]
    before, after = (_ranks(of_stage, figure_of) for of_stage in stages)
    both = [method for method in before if method in after]
    again = [_ranks([row for row in of_stage if row.method in both], figure_of) for of_stage in stages]
    return {method: (again[0][method], again[1][method]) for method in both}


def _ranks(rows: Sequence[Row], figure_of: str) -> dict[str, int]:
    """Rank of each method, 1 is the best; equal values have the same rank."""
    values = {row.method or "": value[0] for row in rows if (value := studied(row, figure_of))}
    ordered = sorted(values.values(), reverse=figure_of in UPWARDS)
    return {method: ordered.index(value) + 1 for method, value in values.items()}


def studied(row: Row, figure_of: str) -> tuple[float, float, float] | None:
    """Value of a row and the ends of its 95 % interval."""
    if figure_of == ACCURACY:
        return row.accuracy
    entry: Any = row.averages.get(figure_of) if figure_of in SCORES else row.perplexities.get(figure_of)
    return entry and (entry["value"], entry.get("low", entry["value"]), entry.get("high", entry["value"]))


def staircase_chart(
    paths: Sequence[ThresholdPath], figure_of: str, below: Sequence[float] = (), text: str = "calibration text"
) -> go.Figure:
    """Layers left, or perplexity on the calibration text, against threshold: one line for each merge rule.

    Args:
        below: thresholds below a path's range whose plans are drawn too, if they are known.
        text: that perplexities are of.
    """
    figure, lowest = go.Figure(), min([path.low for path in paths] + [*below], default=0.0)
    for path in paths:
        x, y, sizes = _staircase(path, figure_of, below, lowest)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers" if any(sizes) else "lines",
            name=method_name(path.rule),
            marker={"size": sizes, "opacity": 1},
            line={"color": method_colour(path.rule), "width": 2},
            hovertemplate="%{x:.3f}: %{y:,.1f}<extra>" + method_name(path.rule) + "</extra>",
        )
    title = "layers left" if figure_of == "layers" else f"perplexity, {text}"
    figure = plain_axes(figure, "threshold", title, 380, legend=True)
    figure.update_xaxes(range=[lowest - 0.01, 1.01])
    if figure_of == "perplexity":
        originals = [step.perplexity for path in paths for step in path.intervals()[:1] if step and step.perplexity]
        log_axis(figure, min(originals, default=None))
    return figure


def _staircase(
    path: ThresholdPath, figure_of: str, below: Sequence[float], lowest: float
) -> tuple[list[float | None], list[float | None], list[int]]:
    """The line of a path: thresholds, values, and sizes of dots where a range is too short to see; gaps are None."""
    single = [path.plan_at(threshold) for threshold in sorted(below, reverse=True) if threshold < path.low]
    by_low = {step.low: step for step in (*path.intervals(), *single) if step}
    steps = [step for step in by_low.values() if figure_of == "layers" or step.perplexity is not None]
    joins = {step.high for step in steps} & {step.low for step in steps}
    x: list[float | None] = []
    y: list[float | None] = []
    sizes: list[int] = []
    for step in steps:
        if x and step.high not in joins:  # a gap: not computed in between
            x, y, sizes = [*x, None], [*y, None], [*sizes, 0]
        value = step.plan.layers_left if figure_of == "layers" else step.perplexity
        x, y = [*x, step.high, max(step.low, lowest)], [*y, value, value]
        short = step.high - step.low < SHORTEST and not joins & {step.low, step.high}
        sizes += [6 if short else 0, 0]
    return x, y, sizes


def threshold_scores_chart(scores: Sequence[dict[str, Any]]) -> go.Figure:
    """Scores of the plans at selected thresholds with 95 % intervals: one line for each merge rule.

    Args:
        scores: rows with `rule`, `threshold`, `layers`, `task`, `value` and `stderr`, as in a study of thresholds.
    """
    figure = go.Figure()
    for rule in dict.fromkeys(row["rule"] for row in scores):
        rows = sorted((row for row in scores if row["rule"] == rule), key=lambda row: row["threshold"])
        figure.add_scatter(
            x=[row["threshold"] for row in rows],
            y=[100 * row["value"] for row in rows],
            error_y=error_bars([percent_interval(row["value"], row["stderr"]) for row in rows]),
            customdata=[row["layers"] for row in rows],
            mode="lines+markers",
            name=method_name(rule),
            line={"color": method_colour(rule)},
            marker={"size": 8},
            hovertemplate="%{x:.2f}, %{customdata} layers: %{y:.1f} %<extra>" + method_name(rule) + "</extra>",
        )
    figure = plain_axes(figure, "threshold", f"{scores[0]['task']}, %" if scores else "", 380, legend=True)
    return figure.update_xaxes(range=[min((row["threshold"] for row in scores), default=0.0) - 0.01, 1.01])
