"""Plotly heat maps of layer similarity; cividis, which colour-blind readers can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from swm.plan import Window
from swm.reporting.palette import BETTER, WINDOW_COLOURS, WORSE

COLOUR_BAR = {"thickness": 10, "outlinewidth": 0}
FULL, STRETCHED, LOGARITHMIC = "0 to 1", "stretched", "logarithmic"
CONTRASTS = (FULL, STRETCHED, LOGARITHMIC)
LARGEST_NINES = 6


@dataclass(frozen=True)
class Map:
    """A map of all layer pairs, ready to draw.

    Attributes:
        name: of the metric. blocks: of alike layers, outlined with dots.
        difference: the values are differences of two maps.
    """

    matrix: Sequence[Sequence[float]]
    name: str
    title: str = ""
    blocks: Sequence[Window] = ()
    difference: bool = False


@dataclass(frozen=True)
class Lines:
    """A panel of lines over layers: values by name, and whether their axis is logarithmic."""

    title: str
    values: dict[str, Sequence[float]]
    log: bool = False


def similarity_heatmap(
    matrix: Sequence[Sequence[float]],
    name: str,
    windows: Sequence[Window] = (),
    contrast: str = FULL,
    title: str = "",
    small: bool = False,
) -> go.Figure:
    """Similarity of all layer pairs, layer 0 in the lower left corner.

    Args:
        name: of the metric. contrast: one of CONTRASTS, how similarities become colours. title: above the map.
        small: one of many, without colour bar and axis titles.
    """
    figure = go.Figure()
    _draw(figure, Map(matrix, name), windows, None, contrast)
    bar = {**COLOUR_BAR, "title": {"text": name, "side": "top"}, "len": 0.6, "y": 1, "yanchor": "top"}
    figure.update_traces(showscale=not small, colorbar=bar, selector={"type": "heatmap"})
    count, axis_title = len(matrix), "" if small else "layer"
    figure.update_xaxes(**_axis(count, axis_title), constraintoward="left")
    figure.update_yaxes(**_axis(count, axis_title), scaleanchor="x", constraintoward="top")
    return figure.update_layout(
        height=260 if small else 520,
        margin={"l": 24 if small else 40, "r": 0, "t": 44, "b": 24 if small else 45},
        title={"text": title, "x": 0, "xref": "container", "y": 0.99, "yanchor": "top", "font": {"size": 15}},
        dragmode=False,
    )


def maps_figure(
    maps: Sequence[Map],
    panels: Sequence[Lines] = (),
    windows: Sequence[Window] = (),
    pair: tuple[int, int] | None = None,
    contrast: str = FULL,
) -> go.Figure:
    """Maps side by side, and lines to their right that share their layer axis; layer 0 at the bottom.

    Windows are outlined in their colours, blocks with dots, the selected pair with a ring.
    """
    count, wide = len(maps[0].matrix), 0.36
    widths = [wide] * len(maps) + [(1.08 - wide * len(maps)) / max(1, len(panels))] * len(panels)
    titles = [each.title for each in maps] + [panel.title for panel in panels]
    figure = make_subplots(
        1, len(titles), True, True, column_widths=widths, horizontal_spacing=0.02, subplot_titles=titles
    )
    for column, each in enumerate(maps, 1):
        _draw(figure, each, windows, pair, contrast, column)
        start, end = figure.layout[f"xaxis{column}" if column > 1 else "xaxis"].domain
        below = {"orientation": "h", "x": start, "xanchor": "left", "y": -0.09, "yanchor": "top"}
        figure.update_traces(
            colorbar={**COLOUR_BAR, **below, "len": 0.9 * (end - start)},
            selector={"type": "heatmap", "name": _place(column)},
        )
        figure.update_xaxes(**_axis(count, ""), scaleanchor="y", constraintoward="left", col=column, row=1)
    figure.update_yaxes(**_axis(count, ""), constraintoward="top")
    figure.update_yaxes(title={"text": "layer"}, col=1, row=1)
    for place, panel in enumerate(panels):
        _draw_lines(figure, panel, len(maps) + 1 + place, f"legend{place + 1}" if place else "legend")
    figure.update_annotations(font={"size": 14}, yshift=4)
    return figure.update_layout(height=430, margin={"l": 40, "r": 6, "t": 34, "b": 66}, dragmode=False)


def _draw_lines(figure: go.Figure, panel: Lines, column: int, legend: str) -> None:
    """A panel of lines: values to the right, layers up."""
    for (name, values), colour in zip(panel.values.items(), (BETTER, *WINDOW_COLOURS[1:3]), strict=False):
        figure.add_scatter(
            x=list(values),
            y=list(range(len(values))),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 1.5},
            marker={"size": 4},
            hovertemplate=f"layer %{{y}}: %{{x:.4f}}<extra>{name}</extra>",
            showlegend=len(panel.values) > 1,
            legend=legend,
            row=1,
            col=column,
        )
    scale = {"type": "log", "exponentformat": "none", "tickformat": ",~g", "dtick": 1} if panel.log else {"nticks": 4}
    figure.update_xaxes(**scale, tickangle=0, zeroline=False, row=1, col=column)
    start, _ = figure.layout[f"xaxis{column}"].domain
    figure.update_layout(
        {
            legend: {
                "x": start,
                "y": -0.09,
                "xanchor": "left",
                "yanchor": "top",
                "font": {"size": 11},
                "bgcolor": "rgba(0,0,0,0)",
            }
        }
    )


def _draw(
    figure: go.Figure,
    each: Map,
    windows: Sequence[Window],
    pair: tuple[int, int] | None,
    contrast: str,
    column: int | None = None,
) -> None:
    """A map with its outlines; plotly only reports clicks on points, so each cell holds an invisible one."""
    here = {"row": 1, "col": column} if column else {}
    count = len(each.matrix)
    scale: Any = [[0, WORSE], [0.5, "#f2f2f2"], [1, BETTER]] if each.difference else "Cividis"
    if each.difference:
        z = [[round(value, 4) for value in row] for row in each.matrix]
        most = max(max(map(abs, row)) for row in z) or 1.0
        ticks = {-most: f"{-most:.2g}", 0.0: "0", most: f"{most:.2g}"}
    else:
        z, ticks = _coloured(each.matrix, contrast)
    layers = list(range(count))
    figure.add_trace(
        go.Heatmap(
            z=z,
            x=layers,
            y=layers,
            zmin=min(ticks),
            zmax=max(ticks),
            colorscale=scale,
            hoverinfo="skip",
            name=_place(column),
        ),
        **here,
    )
    figure.update_traces(
        colorbar={"tickvals": list(ticks), "ticktext": list(ticks.values())},
        selector={"type": "heatmap", "name": _place(column)},
    )
    for block in each.blocks:
        _outline(figure, block, {"color": "white", "width": 3}, {"color": "black", "width": 1.5, "dash": "dot"}, here)
    figure.add_trace(_cells(each.matrix, each.name), **here)
    if pair:
        ring = {"symbol": "square-open", "size": max(8, 330 // count), "color": "white", "line": {"width": 3}}
        figure.add_scatter(
            x=pair, y=pair[::-1], mode="markers", marker=ring, hoverinfo="skip", showlegend=False, **here
        )
    for index, window in enumerate(windows):
        colour = WINDOW_COLOURS[index % len(WINDOW_COLOURS)]
        _outline(figure, window, {"color": "white", "width": 4}, {"color": colour, "width": 2}, here)


def _place(column: int | None) -> str:
    """The name of the map in a column."""
    return f"map {column or 1}"


def _outline(
    figure: go.Figure, window: Window, below: dict[str, Any], above: dict[str, Any], here: dict[str, int]
) -> None:
    """A square around a window's layers, in two lines, so that it stands out on every colour."""
    low, high = max(window.first, 0) - 0.5, window.last + 0.5
    for line in (below, above):
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line=line, **here)


def _cells(matrix: Sequence[Sequence[float]], name: str) -> go.Scatter:
    """An invisible point in each cell, which takes hovers and clicks."""
    count = len(matrix)
    cells = [(x, y) for y in range(count) for x in range(count)]
    return go.Scatter(
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


def _coloured(matrix: Sequence[Sequence[float]], contrast: str) -> tuple[list[list[float]], dict[float, str]]:
    """A number for the colour of each cell, and the ticks of the colour bar: number -> text; they span its range."""
    others = [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j] or [0.0]
    least, most = max(0.0, min(others)), max(0.0, max(others))
    if contrast == STRETCHED and least < most:
        steps = [least + (most - least) * part / 4 for part in range(5)]
        return [[round(value, 6) for value in row] for row in matrix], {step: f"{step:.3g}" for step in steps}
    if contrast == LOGARITHMIC:
        end = min(LARGEST_NINES, max(1, math.ceil(nines(most))))
        ticks = {float(digits): f"{1 - 10.0**-digits:g}" for digits in range(end + 1)}
        return [[round(min(nines(value), end), 4) for value in row] for row in matrix], ticks
    return [[round(value, 4) for value in row] for row in matrix], {part / 4: f"{part / 4:g}" for part in range(5)}


def nines(similarity: float) -> float:
    """-log10(1 - similarity), at least 0: the number of nines after the point, 1 for 0.9, 2 for 0.99."""
    return -math.log10(1 - min(max(similarity, 0.0), 1 - 10.0**-LARGEST_NINES))


def difference(first: Map, second: Map, title: str) -> Map:
    """First minus second similarity of all layer pairs: blue where the first is higher, orange where it is lower."""
    pairs = zip(first.matrix, second.matrix, strict=True)
    return Map([[a - b for a, b in zip(x, y, strict=True)] for x, y in pairs], "difference", title, difference=True)


def _axis(count: int, title: str) -> dict[str, Any]:
    """An axis of layers, as long as the map is wide."""
    shape = {"showgrid": False, "zeroline": False, "constrain": "domain"}
    return {"title": {"text": title}, "range": [-0.5, count - 0.5], **shape}
