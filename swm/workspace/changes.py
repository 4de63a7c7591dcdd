"""Which settings differ when an existing run is requested again, so that nothing is replaced silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from swm.errors import ExperimentError
from swm.plan import MergePlan
from swm.settings import UNSAID, RecoverySettings
from swm.workspace.runs import Run


def plan_changes(old: MergePlan, new: MergePlan) -> list[str]:
    """One phrase for each setting in which the new plan differs from the old one."""
    return _changes(_plan_words(old), _plan_words(new))


def recovery_changes(run: Run, settings: RecoverySettings | None) -> list[str]:
    """One phrase for each setting in which `settings` (None: no healing) differ from the run's last recovery."""
    old = run.settings.get("recovery") or run.settings.get("recovery_started")
    if old is None:
        return []
    if settings is None:
        change = f"healing: {old['preset']}, {old['steps']} steps (requested: none)"
        return [change] if "recovery" in run.settings else []
    old, new = {**UNSAID, **old}, asdict(settings)
    return _changes({name: old[name] for name in new if name in old}, {n: v for n, v in new.items() if n in old})


def limit_changes(run: Run, limit: int | None) -> list[str]:
    """One phrase if the run is scored on another number of documents, otherwise nothing."""
    scores = run.scores()
    return [] if scores is None else _changes({"limit": scores["limit"] or "none"}, {"limit": limit or "none"})


def refuse(run: Run, changes: list[str]) -> None:
    """Raise ExperimentError, listing the changes, if there are any."""
    if changes:
        raise ExperimentError(
            f"Run {run.name} exists with other settings: {'; '.join(changes)}. Pass --again to replace its "
            "model and results, or choose another run name."
        )


def _plan_words(plan: MergePlan) -> dict[str, Any]:
    width = plan.width
    return {
        "windows": ", ".join(map(str, plan.windows)) or "none",
        "rule": plan.rule,
        "width": f"{width.ratio} by {width.method}" if width.ratio else "none",
    }


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', '-')}: {old[name]} (requested: {new[name]})" for name in old if old[name] != new[name]]
