"""Colours of pages, charts and report."""

from __future__ import annotations

BETTER, WORSE = "#2f6fde", "#d9730d"
WINDOW_COLOURS = ("#0072b2", "#b5568c", "#00835f", "#a6761d", "#7b68b5", "#3d87b5")
