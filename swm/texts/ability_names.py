"""Abilities by what users type: names, groups of them, files of their own, with weights. No torch."""

from __future__ import annotations

import math

from swm.errors import SettingsError
from swm.registry import ABILITIES, ABILITY_GROUPS
from swm.texts.requests import ability_title, check_ability


def chosen_abilities(names: str) -> list[str]:
    """The abilities that a comma-separated text names: quick, all, groups, names, and files of one's own.

    Raises:
        SettingsError: if it is empty. TextError: if there is no such ability, or its file is wrong.
    """
    found: list[str] = []
    for name in filter(None, map(str.strip, names.split(","))):
        group = [
            each.name for each in ABILITIES.values() if name in (each.group, "all") or (name == "quick" and each.quick)
        ]
        found += group or [check_ability(name)]
    if not found:
        raise SettingsError(
            f"Name some abilities: quick, all, {', '.join(ABILITY_GROUPS[:-1])} or {', '.join(ABILITIES)}."
        )
    return list(dict.fromkeys(found))


def weights_in(keep: str) -> dict[str, float]:
    """Ability names, groups or files with their weights, from a text such as "code=2,reading=1" or "code,reading".

    Raises:
        SettingsError: if a weight is not a positive number, or a name comes twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, keep.split(","))):
        name, _, weight = part.rpartition("=") if "=" in part else (part, "", "1")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not 0 < value <= 1000:
            raise SettingsError(
                f"--keep {part}: the weight must be a number above 0, as in code=2. "
                "Correct it, or rename the file if = is part of its path."
            )
        if name in found:
            raise SettingsError(f"--keep names {name} twice. Name it once.")
        found[name] = value
    if not found:
        raise SettingsError("--keep needs abilities, as in code,reading. See: python -m swm abilities --help")
    return found


def whole_keep(keep: str) -> str:
    """What to keep, as it is saved: every ability by name with its weight, as in "languages=1,python=1".

    Args:
        keep: names, groups and files of one's own, with weights or without.

    Raises:
        SettingsError, TextError: if a name, a weight or a file is wrong.
    """
    weights: dict[str, float] = {}
    for name, weight in weights_in(keep).items():
        for ability in chosen_abilities(name):
            if ability in weights:
                raise SettingsError(f"--keep names {ability_title(ability)} twice. Name it once.")
            weights[ability] = weight
    return ",".join(f"{name}={weight:g}" for name, weight in sorted(weights.items()))
