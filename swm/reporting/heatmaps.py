"""Plotly heat maps of layer similarity; cividis, which colour-blind readers can read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from swm.plan import Window
from swm.reporting.palette import BETTER, WINDOW_COLOURS, WORSE

COLOUR_BAR = {"thickness": 10, "outlinewidth": 0, "len": 0.6, "y": 1, "yanchor": "top"}
FULL, STRETCHED, LOGARITHMIC = "0 to 1", "stretched", "logarithmic"
CONTRASTS = (FULL, STRETCHED, LOGARITHMIC)
LARGEST_NINES = 6


def similarity_heatmap(
    matrix: Sequence[Sequence[float]],
    name: str,
    windows: Sequence[Window] = (),
    blocks: Sequence[Window] = (),
    pair: tuple[int, int] | None = None,
    contrast: str = FULL,
    title: str = "",
    small: bool = False,
) -> go.Figure:
    """Similarity of all layer pairs, layer 0 in the lower left corner.

    Args:
        name: of the metric. contrast: one of CONTRASTS, how similarities become colours. title: above the map.
        small: one of many, without colour bar and axis titles.

    Windows are outlined in their colours, blocks with dots, the selected pair with a ring. Plotly only reports clicks
    on points, so each cell holds an invisible one.
    """
    count = len(matrix)
    layers = list(range(count))
    z, ticks = _coloured(matrix, contrast)
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=layers,
            y=layers,
            zmin=min(ticks),
            zmax=max(ticks),
            colorscale="Cividis",
            colorbar={
                **COLOUR_BAR,
                "title": {"text": name, "side": "top"},
                "tickvals": list(ticks),
                "ticktext": list(ticks.values()),
            },
            hoverinfo="skip",
        )
    )
    for block in blocks:
        low, high = block.first - 0.5, block.last + 0.5
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line={"color": "white", "width": 3})
        dotted = {"color": "black", "width": 1.5, "dash": "dot"}
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line=dotted)
    figure.add_trace(_cells(matrix, name))
    if pair:
        ring = {"symbol": "square-open", "size": max(8, 420 // count), "color": "white", "line": {"width": 3}}
        figure.add_scatter(x=pair, y=pair[::-1], mode="markers", marker=ring, hoverinfo="skip", showlegend=False)
    for index, window in enumerate(windows):
        low, high = max(window.first, 0) - 0.5, window.last + 0.5
        colour = WINDOW_COLOURS[index % len(WINDOW_COLOURS)]
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line={"color": "white", "width": 4})
        figure.add_shape(type="rect", x0=low, x1=high, y0=low, y1=high, line={"color": colour, "width": 2})
    figure.update_traces(showscale=not small, selector={"type": "heatmap"})
    return _square(figure, count, title, small)


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


def difference_heatmap(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], title: str) -> go.Figure:
    """First minus second similarity of all layer pairs: blue where the first is higher, orange where it is lower."""
    values = [[round(a - b, 4) for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
    largest = max(max(map(abs, row)) for row in values) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=values,
            zmin=-largest,
            zmax=largest,
            colorscale=[[0, WORSE], [0.5, "#f2f2f2"], [1, BETTER]],
            colorbar={**COLOUR_BAR, "title": {"text": "difference", "side": "top"}},
            hovertemplate="layer %{y} and layer %{x}<br>difference %{z:+.4f}<extra></extra>",
        )
    )
    return _square(figure, len(values), title)


def beside(figure: go.Figure) -> go.Figure:
    """A map for one of several columns: its colour bar below, so that the maps are equally large."""
    bar = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top", "len": 1, "lenmode": "fraction"}
    return figure.update_traces(colorbar=bar, selector={"type": "heatmap"}).update_layout(height=430)


def _square(figure: go.Figure, count: int, title: str, small: bool = False) -> go.Figure:
    name = "" if small else "layer"
    axis = {"title": {"text": name}, "range": [-0.5, count - 0.5], "showgrid": False, "zeroline": False}
    figure.update_layout(
        xaxis={**axis, "constrain": "domain", "constraintoward": "left"},
        yaxis={**axis, "scaleanchor": "x", "constrain": "domain", "constraintoward": "top"},
        height=260 if small else 520,
        margin={"l": 24 if small else 40, "r": 0, "t": 44, "b": 24 if small else 45},
        title={"text": title, "x": 0, "xref": "container", "y": 0.99, "yanchor": "top", "font": {"size": 15}},
        dragmode=False,
    )
    return figure
