"""Plotly figures of abilities: what each layer does, and what a model lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from swm.plan import Window
from swm.reporting.abilities import GROUP_TITLES, AbilityMap, Rise, ability_group, in_order, is_clear, percent
from swm.reporting.charts import LINE, plain_axes
from swm.reporting.palette import BETTER, WINDOW_COLOURS, WORSE
from swm.texts.requests import ability_title

PALE = 0.3  # of its colour, where the interval contains 0
FULL_COLOUR = 1.0  # rise of the strongest colour
ROW = 26  # pixels of an ability
TICKS = (-1.0, -0.25, -0.05, 0.0, 0.05, 0.25, 1.0)


def abilities_heatmap(found: AbilityMap, windows: Sequence[Window] = (), what: str = "layer") -> go.Figure:
    """Layers from left to right, abilities by group from top to bottom; each cell holds a point that takes clicks.

    Orange: worse without the layer; blue: better. Colours follow the root of the rise, up to FULL_COLOUR.

    Args:
        windows: outlined in their colours. what: is left out: one of PARTS.
    """
    layers, rows = list(range(found.layers)), _rows(found.abilities)
    by_row = {row: name for name, row in rows.items()}
    heights = range(-max(map(abs, rows.values()), default=0), 1)
    figure = go.Figure()
    figure.add_heatmap(
        x=layers,
        y=list(heights),
        z=[[_colour(r) for r in found.rises[by_row[y]]] if y in by_row else [None] * found.layers for y in heights],
        hoverinfo="skip",
        **_colours(),
    )
    figure.add_trace(_cells(found, rows, "" if what == "layer" else f"the {what} of "))
    bottom, top = heights[0] - 0.5, 0.5
    for index, window in enumerate(windows):
        low, high, colour = max(window.first, 0) - 0.5, window.last + 0.5, WINDOW_COLOURS[index % len(WINDOW_COLOURS)]
        for line in ({"color": "white", "width": 4}, {"color": colour, "width": 2}):
            figure.add_shape(type="rect", x0=low, x1=high, y0=bottom, y1=top, line=line)
    _group_titles(figure, rows)
    plain = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(title={"text": "layer"}, range=[-0.5, found.layers - 0.5], **plain)
    titles = [ability_title(name) for name in rows]
    figure.update_yaxes(tickvals=list(rows.values()), ticktext=titles, range=[bottom, top], **plain)
    return figure.update_layout(
        height=ROW * len(heights) + 60, margin={"l": 130, "r": 0, "t": 6, "b": 45}, dragmode=False
    )


def _colours() -> dict[str, Any]:
    """The colour scale of heat maps of rises, whose values are from `_colour`."""
    ticks = [f"{100 * tick:+.0f} %" if tick else "0" for tick in TICKS[:-1]]
    return {
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, BETTER], [0.5, "#f2f2f2"], [1, WORSE]],
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "tickvals": [_root(tick) for tick in TICKS],
            "ticktext": [*ticks, "+100 % bits<br>or more"],
        },
    }


def _cells(found: AbilityMap, rows: Mapping[str, int], of: str) -> go.Scatter:
    """An invisible point in each cell, which takes hovers and clicks."""
    cells = [(layer, name) for name in found.abilities for layer in range(found.layers)]
    return go.Scatter(
        x=[layer for layer, _ in cells],
        y=[rows[name] for _, name in cells],
        mode="markers",
        marker={"symbol": "square", "size": 18, "opacity": 0},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=[
            [name, ability_title(name), percent(found.rises[name][layer]), found.requests[name]]
            for layer, name in cells
        ],
        hovertemplate=f"%{{customdata[1]}} without {of}layer %{{x}}: %{{customdata[2]}} bits<br>"
        "%{customdata[3]} requests<extra></extra>",
        showlegend=False,
    )


def _group_titles(figure: go.Figure, rows: Mapping[str, int]) -> None:
    for group in dict.fromkeys(map(ability_group, rows)):
        above = max(rows[name] for name in rows if ability_group(name) == group) + 1
        title = {"text": f"<b>{GROUP_TITLES[group]}</b>", "showarrow": False, "xanchor": "right", "xshift": -8}
        figure.add_annotation(x=0, xref="paper", y=above, **title)


def _rows(names: Sequence[str]) -> dict[str, int]:
    """The height of each ability's row: from 0 downwards, with a row for a title above each group."""
    rows, height, last = dict[str, int](), 1, ""
    for name in names:
        height -= 1 if ability_group(name) == last else 2
        rows[name], last = height, ability_group(name)
    return rows


def _colour(rise: Rise) -> float:
    return round((1.0 if is_clear(rise) else PALE) * _root(rise["value"]), 3)


def _root(value: float) -> float:
    return math.copysign(math.sqrt(min(1.0, abs(value) / FULL_COLOUR)), value)


def profile_chart(profiles: Mapping[str, Mapping[str, Rise]], colours: Sequence[str]) -> go.Figure:
    """Rise of each ability's bits, with its interval, for each model: a dot plot.

    Args:
        profiles: by model, as from `reporting.abilities.profile`. colours: one for each model.
    """
    figure = go.Figure()
    names = in_order(list(dict.fromkeys(name for found in profiles.values() for name in found)))
    titles = [ability_title(name) for name in names]
    for place, ((model, found), colour) in enumerate(zip(profiles.items(), colours, strict=True)):
        shift = 0.6 * ((place + 0.5) / len(profiles) - 0.5)
        rises: list[tuple[int, Rise]] = [(row, found[name]) for row, name in enumerate(names) if name in found]
        ends: dict[str, Any] = {
            "array": [100 * (rise["high"] - rise["value"]) for _, rise in rises],
            "arrayminus": [100 * (rise["value"] - rise["low"]) for _, rise in rises],
        }
        figure.add_scatter(
            x=[100 * rise["value"] for _, rise in rises],
            y=[row + shift for row, _ in rises],
            error_x={**ends, "thickness": 1.2, "width": 3},
            mode="markers",
            name=model,
            marker={"color": colour, "size": 8},
            customdata=[[titles[row], percent(rise)] for row, rise in rises],
            hovertemplate="%{customdata[0]}: %{customdata[1]} bits<extra>" + model + "</extra>",
        )
    figure.add_vline(x=0, line={"color": LINE, "dash": "dot"})
    plain_axes(
        figure,
        "rise in bits per byte of the right answer, %",
        "",
        60 + max(22, 14 * len(profiles)) * len(names) + 60,
        True,
    )
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=titles, autorange="reversed")
    return figure.update_layout(margin={"l": 120})


def profiles_heatmap(profiles: Mapping[str, Mapping[str, Rise]], mean: str) -> go.Figure:
    """Models from top to bottom, abilities from left to right; each cell has its colour and its rise in percent.

    Args:
        profiles: by model, as from `reporting.abilities.profile`.
        mean: the column that is a mean over the others; it comes first.
    """
    abilities = in_order(list(dict.fromkeys(name for found in profiles.values() for name in found if name != mean)))
    columns, cells = [mean, *abilities], [*profiles.values()]
    titles = [f"<b>{mean}</b>", *map(ability_title, abilities)]
    shown = [[found.get(name) for name in columns] for found in cells]
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(len(columns))),
        y=list(profiles),
        z=[[_colour(rise) if rise else None for rise in line] for line in shown],
        text=[[f"{100 * rise['value']:+,.0f}" if rise else "" for rise in line] for line in shown],
        texttemplate="%{text}",
        textfont={"size": 12, "color": "#1a1a1a"},
        customdata=[
            [[title, percent(rise) if rise else ""] for title, rise in zip([mean, *titles[1:]], line, strict=True)]
            for line in shown
        ],
        hovertemplate="%{y}<br>%{customdata[0]}: %{customdata[1]} bits<extra></extra>",
        hoverongaps=False,
        **_colours(),
    )
    plain = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=titles, side="top", tickangle=-40, **plain)
    figure.update_yaxes(autorange="reversed", **plain)
    return figure.update_layout(
        height=ROW * len(cells) + 130, margin={"l": 190, "r": 0, "t": 110, "b": 10}, dragmode=False
    )
