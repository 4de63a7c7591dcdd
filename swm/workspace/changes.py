"""An existing run requested with other settings: which ones differ, so that nothing is replaced silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from swm.errors import ExperimentError
from swm.plan import MergePlan
from swm.settings import RecoverySettings
from swm.workspace.runs import Run


def plan_changes(old: MergePlan, new: MergePlan) -> list[str]:
    """In what another plan differs."""
    return _changes(_plan_words(old), _plan_words(new))


def recovery_changes(run: Run, settings: RecoverySettings | None) -> list[str]:
    """In what the asked recovery (None: no healing) differs from the one that the run had, or has begun."""
    known = run.settings.get("recovery") or run.settings.get("recovery_started")
    if known is None:
        return []
    if settings is None:
        had = f"healing is {known['preset']}, {known['steps']} steps (requested: none)"
        return [had] if "recovery" in run.settings else []
    new = asdict(settings)
    return _changes({name: known[name] for name in new if name in known}, {n: v for n, v in new.items() if n in known})


def limit_changes(run: Run, limit: int | None) -> list[str]:
    """Whether its scores are of another number of documents."""
    scores = run.scores()
    return [] if scores is None else _changes({"limit": scores["limit"] or "none"}, {"limit": limit or "none"})


def refuse(run: Run, changes: list[str]) -> None:
    """Raise ExperimentError, naming each setting, if there are any."""
    if changes:
        raise ExperimentError(
            f"Run {run.name} was made with other settings: {'; '.join(changes)}. Pass --again to replace its "
            "model and results, or choose another run name."
        )


def _plan_words(plan: MergePlan) -> dict[str, Any]:
    width = plan.width
    return {
        "windows": ", ".join(map(str, plan.windows)) or "none",
        "rule": plan.rule,
        "width": f"{width.ratio} by {width.method}" if width.ratio else "whole",
    }


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name.replace('_', '-')} is {old[name]} (requested: {new[name]})" for name in old if old[name] != new[name]
    ]
