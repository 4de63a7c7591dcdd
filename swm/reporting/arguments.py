"""Command-line options for a plan or a recovery."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from swm.plan import MergePlan, WidthCut
from swm.settings import preset_settings


def plan_arguments(plan: MergePlan) -> list[str]:
    """Options for this plan: windows, rule, width."""
    windows = windows_arguments(",".join(map(str, plan.windows)))
    return [*windows, "--rule", plan.rule, *width_arguments(plan.width)]


def windows_arguments(windows: str) -> list[str]:
    """Options for windows set by hand."""
    return [f"--windows={windows}"] if windows.startswith("-") else ["--windows", windows]


def width_arguments(width: WidthCut) -> list[str]:
    """Options for width pruning; none without it."""
    return ["--width", f"{width.ratio:g}", "--width-by", width.method] if width.ratio else []


def recovery_arguments(settings: dict[str, Any]) -> list[str]:
    """Options for these settings: the preset, and every value that differs from it."""
    preset = asdict(preset_settings(settings["preset"], steps=settings["steps"]))
    changed = {name: settings[name] for name in preset if name in settings and settings[name] != preset[name]}
    changed["steps"] = settings["steps"]
    options = [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", f"{value}")]
    return ["--preset", settings["preset"], *options]
