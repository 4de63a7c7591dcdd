"""Many models on one page: filters, and what they are grouped by."""

from __future__ import annotations

from typing import Any

import streamlit as st

from swm.reporting.glossary import method_name
from swm.reporting.names import stage_of
from swm.reporting.palette import MODEL_COLOURS, method_colour, row_colours

Labelled = dict[str, dict[str, Any]]

OWN = "model"
GROUPS = {OWN: "Model", "layers": "Layers", "method": "Method", "stage": "Stage"}


def group_of(row: dict[str, Any], by: str) -> str:
    """The group of a row of `compare`: its layers, method or stage."""
    if by == "layers":
        return f"{row['layers']} layers"
    return method_name(row["chosen_by"]) if by == "method" else stage_of(row)


def group_colours(rows: list[dict[str, Any]], groups: list[str], by: str) -> list[str]:
    """The colour of each row: its model's or its method's, as on all pages; otherwise one for each group."""
    if by == OWN:
        return row_colours(rows, paler=False)
    if by == "method":
        return [method_colour(row["chosen_by"]) for row in rows]
    order = list(dict.fromkeys(groups))
    return [MODEL_COLOURS[order.index(group) % len(MODEL_COLOURS)] for group in groups]


def filtered(labels: Labelled, key: str) -> Labelled:
    """The rows that the user's filters leave; each filter offers what the rows have, and nothing chosen keeps all."""
    names = [name for name in GROUPS if name != OWN]
    for column, by in zip(st.columns(len(names), gap="large"), names, strict=True):
        groups = list(dict.fromkeys(group_of(row, by) for row in labels.values()))
        if not {*st.session_state.get(f"{key}_{by}", [])} <= {*groups}:  # of other models
            del st.session_state[f"{key}_{by}"]
        chosen = column.multiselect(GROUPS[by], groups, key=f"{key}_{by}", placeholder="All", bind="query-params")
        labels = {label: row for label, row in labels.items() if not chosen or group_of(row, by) in chosen}
    return labels
