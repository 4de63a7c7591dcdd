"""Many models on one page: filters, and what they are grouped by."""

from __future__ import annotations

import streamlit as st

from pages.shared.choices import named_choice
from swm.reporting.glossary import method_name
from swm.reporting.names import stage_of
from swm.reporting.palette import MODEL_COLOURS, method_colour, row_colours
from swm.reporting.row import Row

Labelled = dict[str, Row]

OWN = "model"
GROUPS = {OWN: "Model", "layers": "Layers", "method": "Method", "stage": "Stage"}
ORDERS = {name: GROUPS[name] for name in ("method", "layers", "stage")} | {OWN: "none: one colour each"}
GROUPED = (
    "Order of the tables, and colours of the charts. More than ten models on one page repeat colours, groups do not."
)


def group_of(row: Row, by: str) -> str:
    """The group of a row of `compare`: its layers, method or stage."""
    if by == "layers":
        return f"{row.layers} layers"
    return method_name(row.chosen_by) if by == "method" else stage_of(row)


def group_colours(rows: list[Row], groups: list[str], by: str) -> list[str]:
    """The colour of each row: its model's or its method's, as on all pages; otherwise one for each group."""
    if by == OWN:
        return row_colours(rows, paler=False)
    if by == "method":
        return [method_colour(row.chosen_by) for row in rows]
    order = list(dict.fromkeys(groups))
    return [MODEL_COLOURS[order.index(group) % len(MODEL_COLOURS)] for group in groups]


def filtered(labels: Labelled, key: str) -> tuple[Labelled, str]:
    """The rows that the user's filters leave, ordered by group, and what they are grouped by.

    Each filter offers what the rows have, and nothing chosen keeps all.
    """
    names = [name for name in GROUPS if name != OWN]
    for by in names:
        groups = list(dict.fromkeys(group_of(row, by) for row in labels.values()))
        if not {*st.session_state.get(f"{key}_{by}", [])} <= {*groups}:  # of other models
            del st.session_state[f"{key}_{by}"]
        chosen = st.multiselect(GROUPS[by], groups, key=f"{key}_{by}", placeholder="All", bind="query-params")
        labels = {label: row for label, row in labels.items() if not chosen or group_of(row, by) in chosen}
    grouping = named_choice(st.selectbox, "Group by", ORDERS, f"{key}_group", help=GROUPED)
    order = list(dict.fromkeys(group_of(row, grouping) for row in labels.values())) if grouping != OWN else []
    if grouping == "layers":
        order.sort(key=lambda group: -int(group.split()[0]))
    place = (lambda label: order.index(group_of(labels[label], grouping))) if order else (lambda label: 0)
    return {label: labels[label] for label in sorted(labels, key=place)}, grouping
