"""Targets for a smaller model: how many layers meet a memory, a speed or a number of parameters. No torch."""

from __future__ import annotations

import re
from typing import Any

from swm.errors import PlanError, SettingsError
from swm.plan import MergePlan
from swm.settings import CACHE_TOKENS

LEAST_LAYERS = 2
LAYERS, MEMORY, PARAMETERS, SPEED, LOSS = "layers", "memory", "parameters", "speed", "perplexity"
SIZES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
Facts = dict[str, Any]


def size_from(text: str) -> float:
    """Bytes from a size such as 6GiB or 900MB.

    Raises:
        SettingsError: if it is none.
    """
    return _scaled(text, SIZES, "a size", "6GiB or 900MiB")


def count_from(text: str) -> float:
    """A number such as 5.5B or 120M; raises SettingsError if it is none."""
    return _scaled(text, COUNTS, "a number of parameters", "5.5B or 120M")


def loss_from(text: str) -> float:
    """The factor of perplexity that a loss such as 5% allows; raises SettingsError if it is none."""
    match = re.fullmatch(rf"({NUMBER})\s*%", text.strip())
    if not match or not float(match[1]):
        raise SettingsError(f"'{text[:20]}' is not a loss. Write a share above 0, such as 5%.")
    return 1 + float(match[1]) / 100


def _scaled(text: str, units: dict[str, float], what: str, example: str) -> float:
    match = re.fullmatch(rf"({NUMBER})\s*([A-Za-z]*)", text.strip())
    scales = {unit.lower(): scale for unit, scale in units.items()}
    if not match or match[2].lower() not in scales or not float(match[1]):
        raise SettingsError(f"'{text[:20]}' is not {what}. Write it as {example}.")
    return float(match[1]) * scales[match[2].lower()]


def layer_parameters(facts: Facts, count: int) -> list[float]:
    """Parameters of each of the original's layers, lowest first.

    Args:
        facts: of the original, as from `models.load.config_facts`.
    """
    return facts.get("layer_parameters") or [float(facts["parameters_per_layer"])] * count


def parameters_of(facts: Facts, plan: MergePlan) -> float:
    """Parameters of a plan's model: those of the layers that give the merged ones their shapes, and all others."""
    each = layer_parameters(facts, plan.layer_count)
    kept = sum(each[layer] for layer in plan.base_layers())
    return facts["parameters"] - sum(each) + kept * (1 - plan.width.ratio)


def weights_of(facts: Facts, plan: MergePlan) -> float:
    """Size of the weights of a plan's model in memory, in bytes."""
    return float(facts["size_bytes"] * parameters_of(facts, plan) / facts["parameters"])


def parameters_left(facts: Facts, layers: int) -> float:
    """The fewest parameters that a model with so many layers can have: with the smallest ones left."""
    return float(facts["parameters"] - sum(sorted(layer_parameters(facts, facts["layers"]))[layers:]))


def weights_bytes(facts: Facts, layers: int) -> float:
    """Size of its weights in memory."""
    return float(facts["size_bytes"] * parameters_left(facts, layers) / facts["parameters"])


def cache_bytes(facts: Facts, layers: float, tokens: int) -> float:
    """Size of the keys and values that it keeps of so many tokens, at most; layers with a window keep fewer.

    `cache_bytes_per_token` is what one layer keeps.
    """
    return float(facts.get("cache_bytes_per_token", 0) * layers * tokens)


def speedup_with(facts: Facts, cost: Facts, layers: float) -> float:
    """Expected generation speed relative to the original, if each layer takes as long as in the original.

    Args:
        cost: the original's time per token, as from `evaluation.cost.decode_cost`.
    """
    whole = cost["layers_ms"] + cost["rest_ms"]
    return float(whole / (cost["layers_ms"] * layers / facts["layers"] + cost["rest_ms"]))


def most_layers(
    facts: Facts, kind: str, value: float, cost: Facts | None = None, cache_tokens: int = CACHE_TOKENS
) -> int | None:
    """The most layers that a model which meets a target can have; None if even two layers are too many.

    Where layers differ in size, it depends on the plan whether that many meet it: see `meets`.

    Args:
        kind: LAYERS, MEMORY (at most so many bytes for weights and cache), PARAMETERS (at most), or SPEED (at least
            so many times the original's; needs `cost`).
    """

    def possible(layers: int) -> bool:
        if kind == LAYERS:
            return layers <= value
        if kind == PARAMETERS:
            return parameters_left(facts, layers) <= value
        if kind == MEMORY:
            return weights_bytes(facts, layers) + cache_bytes(facts, layers, cache_tokens) <= value
        # Rounded as pages show it: nobody should be refused the plan that they see at × 1.20.
        return cost is not None and round(speedup_with(facts, cost, layers), 2) >= value

    return next((layers for layers in range(facts["layers"], LEAST_LAYERS - 1, -1) if possible(layers)), None)


def meets(facts: Facts, kind: str, value: float, plan: MergePlan, cache_tokens: int = CACHE_TOKENS) -> bool:
    """Whether a plan's model stays within a target of memory or parameters; with other targets, its layers say so."""
    if kind == PARAMETERS:
        return parameters_of(facts, plan) <= value
    if kind == MEMORY:
        return weights_of(facts, plan) + cache_bytes(facts, plan.layers_left, cache_tokens) <= value
    return True


def check_meets(facts: Facts, kind: str, value: float, plan: MergePlan, cache_tokens: int = CACHE_TOKENS) -> None:
    """Raise PlanError unless a plan meets a target, see `meets`."""
    if not meets(facts, kind, value, plan, cache_tokens):
        windows = ",".join(map(str, plan.windows))
        raise PlanError(
            f"The plan with {plan.layers_left} layers ({windows}) does not meet the target: its layers are larger than "
            "others. Choose another planner, or a smaller target."
        )
