"""Options that contradict each other are refused before anything runs."""

from __future__ import annotations

import argparse
from dataclasses import fields

from swm.errors import SettingsError
from swm.settings import RecoverySettings
from swm.studies.grids import OF_RUNS


def check_options(options: argparse.Namespace) -> None:
    """Raise SettingsError for an option that would be ignored beside the others, or a count that is none."""
    given = {name: value for name, value in vars(options).items() if value is not None and value is not False}
    planned = "planner" in vars(options)
    if planned and "budget" in given and options.planner != "best":
        raise SettingsError("--budget only applies to --planner best. Leave it out.")
    if planned and options.precision != "auto" and options.windows is not None:
        raise SettingsError("--precision applies to a search, and with --windows there is none. Leave it out.")
    named = ("threshold", "layers", "ratio", "windows", "planner")
    without = options.command == "run" and not any(name in given for name in named)
    if without and ("rule" in given or options.precision != "auto"):
        raise SettingsError(
            "--rule and --precision need a plan: add --threshold, --layers, --ratio, --windows or --planner."
        )
    if "width_by" in given and not options.width:
        raise SettingsError("--width-by needs --width. Add it, or leave --width-by out.")
    if "no_recovery" in given:
        names = [field.name for field in fields(RecoverySettings) if field.name != "preset"]
        ignored = [name for name in names if name in given]
        if ignored:
            raise SettingsError(f"--no-recovery cannot be combined with --{_word(ignored[0])}. Leave one of them out.")
    if options.command == "study" and "against" in given and options.kind not in OF_RUNS:
        raise SettingsError(f"--against does not apply to the study {options.kind}. Leave it out.")
    if options.command == "sweep" and options.executor != "ray" and options.address:
        raise SettingsError("--address needs --executor ray. Add it, or leave --address out.")
    for name, least in (("count", 1), ("length_of_texts", 1), ("workers", 0)):
        if options.command in ("estimate", "sweep") and given.get(name, least) < least:
            raise SettingsError(f"--{_word(name)} {given[name]} is out of range. Choose {least} or more.")


def _word(name: str) -> str:
    return name.replace("_", "-")
