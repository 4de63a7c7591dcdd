"""Plotly figures that compare models: rows of `compare`, one colour for each model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from swm.evaluation.paired import ACCURACY, BITS_PER_BYTE, CHOICE_LOGPROB, VERDICTS, Paired
from swm.reporting.charts import LINE, TALLEST, error_bars, plain_axes
from swm.reporting.compare import documents_key, value_of
from swm.reporting.glossary import FORMS, TITLES, UNITS
from swm.reporting.names import text_name
from swm.reporting.palette import BETTER, WORSE, row_colours
from swm.reporting.row import Row, TaskScore, percent_interval

ERROR_BAR = "rgba(90,98,112,1)"
MOST_BARS = 6  # more models than this are unreadable as bars side by side
MOST_NAMES = 12  # more names than this cover each other beside points
NAME_SIZE = 0.22, 0.06  # of a name, as a share of the width and height that the points cover
LINE_HEIGHT = 22  # pixels for a model's line
NOTHING = "#dfe3ea"  # opaque, so that plotly can choose a legible colour for the text on it


def scores_chart(rows: Sequence[Row], names: Sequence[str]) -> go.Figure:
    """Accuracy with 95 % intervals: a group of bars for each task, a bar for each row."""
    figure = go.Figure()
    for row, name, colour in zip(rows, names, row_colours(rows), strict=True):
        tasks = list(row.scores)
        figure.add_bar(
            x=tasks,
            y=[100 * row.scores[task]["value"] for task in tasks],
            name=name,
            marker_color=colour,
            error_y={**error_bars([_with_ends(row.scores[task]) for task in tasks]), "color": ERROR_BAR},
            hovertemplate="%{x}: %{y:.1f} %<extra>" + name + "</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25)
    return plain_axes(figure, "", "accuracy, %", 340, legend=True)


def scores_grid(rows: Sequence[Row], names: Sequence[str], references: Sequence[Row]) -> go.Figure:
    """Accuracy of many models: a line for each, a column for each task, coloured by the difference from a reference.

    A cell has no colour where model and reference were not scored on the same documents.

    Args:
        references: one for each row.
    """
    tasks = list(dict.fromkeys(task for row in rows for task in row.scores))

    def differences_of(row: Row, reference: Row) -> list[float | None]:
        own, other = documents_key(row), documents_key(reference)
        same = {task for task in own if own[task] == other.get(task)}
        first, second = row.scores, reference.scores
        return [100 * float(first[t]["value"] - second[t]["value"]) if t in same else None for t in tasks]

    differences = [differences_of(row, reference) for row, reference in zip(rows, references, strict=True)]
    most = max((abs(value) for line in differences for value in line if value is not None), default=0.0) or 1.0
    figure = go.Figure(
        go.Heatmap(
            x=tasks,
            y=list(names),
            z=differences,
            text=[[_accuracy(row, task) for task in tasks] for row in rows],
            texttemplate="%{text}",
            colorscale=[[0, WORSE], [0.5, NOTHING], [1, BETTER]],
            zmin=-most,
            zmax=most,
            xgap=2,
            ygap=2,
            colorbar={
                "title": {"text": "points", "side": "right"},
                "thickness": 12,
                "lenmode": "pixels",
                "len": min(180, LINE_HEIGHT * len(rows)),
                "y": 1,
                "yanchor": "top",
            },
            hovertemplate="%{y}<br>%{x}: %{text} %, difference %{z:+.1f} points<extra></extra>",
        )
    )
    figure = plain_axes(figure, "", "", 44 + LINE_HEIGHT * len(rows))
    figure.update_layout(margin={"t": 36, "b": 8})
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    return figure.update_xaxes(side="top", showgrid=False)


def _with_ends(score: TaskScore) -> tuple[float, float, float]:
    return percent_interval(score["value"], score["stderr"])


def _accuracy(row: Row, task: str) -> str:
    return f"{100 * row.scores[task]['value']:.1f}" if task in row.scores else ""


class _Point(NamedTuple):
    """A model in the chart of score against speed; `score` with the ends of its interval, `span` those of the speed."""

    speed: float
    score: tuple[float, float, float]
    name: str
    colour: str
    side: str
    span: tuple[float, float]

    def beats(self, other: _Point) -> bool:
        """Whether it is at least as good in both, and better in one."""
        own, others = (self.speed, self.score[0]), (other.speed, other.score[0])
        return own != others and own[0] >= others[0] and own[1] >= others[1]


def _points(rows: Sequence[Row], names: Sequence[str], colours: Sequence[str]) -> list[_Point]:
    return [
        _Point(speed, row.accuracy, name, colour, _side(row), _speed_span(row, speed))
        for row, name, colour in zip(rows, names, colours, strict=True)
        if (speed := relative_speed(row)) and row.accuracy
    ]


def _speed_span(row: Row, speed: float) -> tuple[float, float]:
    """The range of a relative speed over repetitions; no width for the original itself."""
    return (row.speedup["low"], row.speedup["high"]) if row.speedup else (speed, speed)


def _apart(points: Sequence[_Point]) -> list[_Point]:
    """Those whose names would not lie on the name of an earlier one."""
    reach = [max(ends) - min(ends) for ends in zip(*((p.speed, p.score[0]) for p in points), strict=True)]
    apart: list[_Point] = []
    for point in points:
        near = (
            abs(point.speed - other.speed) <= NAME_SIZE[0] * reach[0]
            and abs(point.score[0] - other.score[0]) <= NAME_SIZE[1] * reach[1]
            and point.side == other.side
            for other in apart
        )
        if not any(near):
            apart.append(point)
    return apart


def score_against_speed(
    rows: Sequence[Row], names: Sequence[str], groups: Sequence[str] = (), colours: Sequence[str] = ()
) -> go.Figure:
    """Average score against relative speed, with the Pareto front: the rows that no other beats in both.

    Args:
        groups, colours: one for each row; by default each model has its own colour.
    """
    colours = colours or row_colours(rows)
    points = _points(rows, names, colours)
    front = sorted(point for point in points if not any(other.beats(point) for other in points))
    middle = sum(point.speed for point in points) / max(1, len(points))  # names go to the side with more room
    named = _apart(front if len(points) > MOST_NAMES else [*front, *(p for p in points if p not in front)])
    figure = go.Figure()
    figure.add_scatter(
        x=[point.speed for point in front],
        y=[point.score[0] for point in front],
        mode="lines",
        line={"color": LINE, "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[point.speed for point in points],
        y=[point.score[0] for point in points],
        error_x={**error_bars([(point.speed, *point.span) for point in points]), "color": ERROR_BAR},
        error_y={**error_bars([point.score for point in points]), "color": ERROR_BAR},
        mode="markers+text",
        text=[point.name if point in named else "" for point in points],
        textposition=[f"{point.side} {'left' if point.speed > middle else 'right'}" for point in points],
        marker={"color": [point.colour for point in points], "size": 10},
        customdata=[point.name for point in points],
        hovertemplate="%{customdata}<br>× %{x:.2f}, %{y:.1f} %<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )
    for group, colour in dict(zip(groups, colours, strict=False)).items():  # of the legend alone
        figure.add_scatter(x=[None], y=[None], mode="markers", name=group, marker={"color": colour, "size": 10})
    return plain_axes(
        figure, "speed relative to the original, measured in turn", "average accuracy, %", 340, legend=True
    )


class Axis(NamedTuple):
    """One axis of parallel coordinates: `value` is of a row, None if it was not measured."""

    title: str
    value: Callable[[Row], float | None]
    low_is_better: bool
    is_log: bool = False


def relative_speed(row: Row) -> float | None:
    """Speed as a multiple of the original's in the same session, since a machine's speed varies; None if not timed."""
    if row.speedup:
        return float(row.speedup["value"])
    return 1.0 if row.tokens_per_second and not row.windows and not row.width.ratio else None


def _side(row: Row) -> str:
    """Names go above points, of models that are not healed below, because both are close together."""
    return "bottom" if row.stage == "merged" else "top"


def parallel_chart(
    rows: Sequence[Row], names: Sequence[str], groups: Sequence[str], colours: Sequence[str]
) -> tuple[go.Figure, list[str]]:
    """Models as lines through an axis for each number, better always up; an axis for the groups comes first.

    An axis needs the number of at least half of the models.

    Args:
        groups, colours: one for each row; rows of one group have one colour.

    Returns:
        The figure, and the names of the models that lack a number and so have no line.
    """
    axes = [axis for axis in _axes(rows) if 2 * sum(axis.value(row) is not None for row in rows) >= len(rows)]
    drawn = [place for place, row in enumerate(rows) if all(axis.value(row) is not None for axis in axes)]
    order = list(dict.fromkeys(groups[place] for place in drawn))
    of_group = dict(zip(groups, colours, strict=True))
    lowest, highest = -0.5, len(order) - 0.5
    places = [order.index(groups[place]) for place in drawn]
    first = {
        "label": "",
        "values": places,
        "tickvals": list(range(len(order))),
        "ticktext": order,
        "range": [highest, lowest],
    }
    figure = go.Figure(
        go.Parcoords(
            line={
                "color": places,
                "colorscale": [
                    [end / len(order), of_group[group]] for i, group in enumerate(order) for end in (i, i + 1)
                ],
                "cmin": lowest,
                "cmax": highest,
            },
            dimensions=[first, *(_dimension(axis, [rows[place] for place in drawn]) for axis in axes)],
            labelfont={"size": 12},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},  # the ends of an axis, with all their digits
        )
    )
    longest = max((len(name) for name in order), default=0)
    figure.update_layout(
        height=max(360, 110 + LINE_HEIGHT * len(order)), margin={"l": 30 + 7 * longest, "r": 60, "t": 70, "b": 24}
    )
    return figure, [name for place, name in enumerate(names) if place not in drawn]


def _axes(rows: Sequence[Row]) -> list[Axis]:
    """The numbers that models are compared by."""
    texts = dict.fromkeys(text for row in rows for text in row.perplexities)

    def average(score: str) -> Callable[[Row], float | None]:
        return lambda row: value_of(row.averages.get(score))

    def accuracy(row: Row) -> float | None:
        return row.accuracy[0] if row.accuracy else None

    def perplexity(text: str) -> Callable[[Row], float | None]:
        return lambda row: value_of(row.perplexities.get(text))

    return [
        Axis("layers", lambda row: row.layers, low_is_better=True),
        Axis("parameters,<br>million", lambda row: row.parameters / 1e6, low_is_better=True),
        Axis("relative<br>speed", relative_speed, low_is_better=False),
        *(
            Axis(f"perplexity,<br>{text_name(text)}", perplexity(text), low_is_better=True, is_log=True)
            for text in texts
        ),
        Axis(
            "average<br>accuracy, %",
            lambda row: None if row.average is None else 100 * row.average,
            low_is_better=False,
        ),
        Axis("choice log-<br>probability", average(CHOICE_LOGPROB), low_is_better=False),
        Axis("bits<br>per byte", average(BITS_PER_BYTE), low_is_better=True),
    ]


def _dimension(axis: Axis, rows: Sequence[Row]) -> dict[str, Any]:
    """An axis as plotly takes it: the better end up, a log axis with round numbers."""
    values = [float(axis.value(row) or 0.0) for row in rows]
    ticks: dict[str, Any] = {}
    if axis.title == "layers":
        ticks = {"tickvals": sorted({*values}), "ticktext": [f"{value:.0f}" for value in sorted({*values})]}
    if axis.is_log:
        values = [min(value, TALLEST * min(values)) for value in values]  # broken models would squeeze the rest
        rounds = [digit * 10**power for power in range(12) for digit in (1, 2, 5)]
        rounds = [tick for tick in rounds if min(values, default=1) <= tick <= max(values, default=1)]
        rounds = rounds if len(rounds) > 1 else sorted({round(min(values), 1), round(max(values), 1)})
        values = [math.log10(value) for value in values]
        ticks = {"tickvals": [math.log10(tick) for tick in rounds], "ticktext": [f"{tick:,}" for tick in rounds]}
    low, high = min(values, default=0.0), max(values, default=1.0)
    ends = [low, high] if low < high else [low - 0.5, high + 0.5]
    return {"label": axis.title, "values": values, "range": ends[::-1] if axis.low_is_better else ends, **ticks}


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
    return plain_axes(
        figure, f"{TITLES[score].lower()}:<br>difference ({unit})", "", 80 + 34 * len(compared), legend=True
    )
