"""The command line's options that give a plan or a recovery."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from swm.plan import MergePlan, WidthCut
from swm.settings import preset_settings


def plan_arguments(plan: MergePlan) -> list[str]:
    """The command line's options that give this plan."""
    found = [*windows_arguments(",".join(map(str, plan.windows))), "--rule", plan.rule]
    return [*found, *width_arguments(plan.width)]


def windows_arguments(windows: str) -> list[str]:
    """The command line's options for windows set by hand."""
    return [f"--windows={windows}"] if windows.startswith("-") else ["--windows", windows]


def width_arguments(width: WidthCut) -> list[str]:
    """The command line's options for a cut in width; none for the whole width."""
    return ["--width", f"{width.ratio:g}", "--width-by", width.method] if width.ratio else []


def recovery_arguments(settings: dict[str, Any]) -> list[str]:
    """The command line's options that give these settings: the preset, and what differs from it."""
    preset = asdict(preset_settings(settings["preset"], steps=settings["steps"]))
    changed = {name: settings[name] for name in preset if name in settings and settings[name] != preset[name]}
    changed["steps"] = settings["steps"]
    options = [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", f"{value}")]
    return ["--preset", settings["preset"], *options]
