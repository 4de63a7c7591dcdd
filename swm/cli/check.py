"""Rejects options that contradict each other, before anything runs."""

from __future__ import annotations

import argparse
from typing import Any

from swm.errors import SettingsError
from swm.registry import MERGE_RULES, METRICS, PLANNERS
from swm.search.walk import check_threshold
from swm.studies.grids import OF_RUNS
from swm.workspace.targets import loss_from

TARGETS = ("layers", "ratio", "within", "loss", "memory", "speedup", "parameters")


def check_options(options: argparse.Namespace) -> None:
    """Raise SettingsError for an option that the others would make ineffective, or a count out of range."""
    _check_values(options)
    given = {name: value for name, value in vars(options).items() if value is not None and value is not False}
    if "planner" in vars(options):
        _check_search(options, given)
        _check_target(options, given)
    if "width_by" in given and not options.width:
        raise SettingsError("--width-by needs --width. Add --width, or remove --width-by.")
    if "no_recovery" in given and (options.steps is not None or options.set):
        ignored = "steps" if options.steps is not None else options.set[0][0]
        raise SettingsError(f"--no-recovery cannot be combined with --{_option(ignored)}. Remove one of them.")
    if options.command == "study" and "against" in given and options.kind not in OF_RUNS:
        raise SettingsError(f"--against does not apply to the study {options.kind}. Remove --against.")
    if options.command == "sweep" and options.executor != "ray" and options.address:
        raise SettingsError("--address needs --executor ray. Add --executor ray, or remove --address.")
    for name, least in (("count", 1), ("length_of_texts", 1), ("workers", 0)):
        if options.command in ("estimate", "sweep") and given.get(name, least) < least:
            raise SettingsError(f"--{_option(name)} {given[name]} is out of range. Choose {least} or more.")


def _check_search(options: argparse.Namespace, given: dict[str, Any]) -> None:
    """The options of a planner, which no threshold and no windows by hand take."""
    for name in ("budget", "minutes"):
        if name in given and options.planner != "best":
            raise SettingsError(f"--{name} only applies to --planner best. Remove --{name}.")
    if "minutes" in given and not 0 < options.minutes <= 100_000:
        raise SettingsError(f"--minutes {options.minutes:g} is out of range. Choose more than 0, and at most 100,000.")
    if {"minutes", "budget"} <= {*given}:
        raise SettingsError("--minutes takes the place of --budget. Give one of the two.")
    if options.planner and (other := next((n for n in ("threshold", "windows") if n in given), None)):
        raise SettingsError(f"--planner chooses the layers itself, as --{other} does. Give one of the two.")
    if options.keep_period and not options.planner:
        raise SettingsError("--keep-period needs --planner: the threshold decides alone. Add --planner.")
    if "keep" in given and not (options.planner and PLANNERS[options.planner].keeps):
        able = ", ".join(name for name, each in PLANNERS.items() if each.keeps)
        raise SettingsError(f"--keep needs a planner that tries plans: --planner {able}. Choose one of these.")
    if options.precision != "auto" and options.windows is not None:
        raise SettingsError("--precision applies to a search, but --windows needs none. Remove --precision.")


def _check_target(options: argparse.Namespace, given: dict[str, Any]) -> None:
    """What the smaller model is to reach."""
    if options.keep_period and options.within is not None:
        raise SettingsError(
            "--keep-period cannot be combined with --within or --loss: not every number of layers keeps the period. "
            "Choose a number of layers."
        )
    if "cache_tokens" in given and (options.memory is None or options.cache_tokens < 0):
        raise SettingsError("--cache-tokens needs --memory, and cannot be negative.")
    no_plan = options.command == "run" and not {"threshold", *TARGETS, "windows", "planner"} & {*given}
    if no_plan and ("rule" in given or options.precision != "auto"):
        raise SettingsError(
            "--rule and --precision need a plan: add --threshold, --layers or another target, --windows or --planner."
        )


def _option(name: str) -> str:
    return name.replace("_", "-")


def _check_values(options: argparse.Namespace) -> None:
    """Raise SettingsError for an unknown name or a threshold out of range, before anything heavy is imported."""
    for name, registry in (("rule", MERGE_RULES), ("metric", METRICS)):
        if (value := getattr(options, name, None)) is not None:
            registry.check(value)
    if (factor := getattr(options, "within", None)) is not None and not 1 < factor < float("inf"):
        raise SettingsError(f"--within {factor:g} is out of range. Choose a number above 1, such as 1.2.")
    if (speedup := getattr(options, "speedup", None)) is not None and not 1 < speedup < float("inf"):
        raise SettingsError(f"--speedup {speedup:g} is out of range. Choose a number above 1, such as 1.3.")
    if (share := getattr(options, "loss", None)) is not None:
        options.within = loss_from(share)
    for name in ("threshold", "low", "focus"):
        if (value := getattr(options, name, None)) is not None:
            check_threshold(value)
