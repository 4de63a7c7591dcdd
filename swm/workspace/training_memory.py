"""Memory of a training, from the model's size and the settings. No torch."""

from __future__ import annotations

from typing import Any

from swm.plan import MergePlan, trained_layers
from swm.settings import RecoverySettings

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # of a number, with its share of scales, which are quantized as well


def healing_bytes(recovery: RecoverySettings, plan: MergePlan, facts: dict[str, Any], free: float) -> float:
    """What a training keeps: weights, trained ones with gradients and moments, a batch's activations and logits.

    Args:
        facts: of the original model. free: memory in bytes, which decides whether activations are computed again.
    """
    tokens, width = recovery.batch * recovery.length, facts["width"]
    kept = activation_bytes(tokens, plan.layers_left, width)
    if recovery.checkpointing == "on" or (recovery.checkpointing == "auto" and kept > free / 2):
        kept = activation_bytes(tokens, 1, width) + 4 * tokens * width * plan.layers_left
    plain = recovery.quantization == "none"
    weights = 1.3 * facts["size_bytes"] if plain else four_bit_bytes(facts, plan.worth_layers)
    return float(weights + trained_bytes(recovery, plan, facts) + kept + 4 * tokens * 3 * vocabulary_of(facts))


def vocabulary_of(facts: dict[str, Any]) -> float:
    """Tokens of a model's vocabulary; of older facts about as many."""
    in_layers = facts["layers"] * facts["parameters_per_layer"]
    return float(facts.get("vocabulary") or (facts["parameters"] - in_layers) / facts["width"])


def trained_bytes(recovery: RecoverySettings, plan: MergePlan, facts: dict[str, Any]) -> int:
    """About the size of the trained weights, gradients and two moments; a checkpoint is no larger.

    Args:
        facts: of the original model.
    """
    if recovery.train == "adapters":
        return adapter_bytes(recovery.rank, plan.layers_left, facts["width"])
    numbers = len(trained_layers(plan, recovery.adapt)) * facts["parameters_per_layer"]
    if recovery.adapt == "last":  # the head, if it has weights of its own: at most half of what is not in the layers
        numbers += max(0, facts["parameters"] - facts["layers"] * facts["parameters_per_layer"]) // 2
    return int(16 * numbers)


def four_bit_bytes(facts: dict[str, Any], layers: float) -> float:
    """Size of a model whose layers are stored as NF4 and everything else as it is.

    Args:
        facts: of the original model. layers: how many the model has.
    """
    in_layers = facts["layers"] * facts["parameters_per_layer"]
    rest = facts["size_bytes"] * (1 - in_layers / facts["parameters"])
    return float(rest + NF4_BYTES * layers * facts["parameters_per_layer"])


def adapter_bytes(rank: int, layers: int, width: int) -> int:
    """About the size of LoRA's weights, gradients and two moments, in all linear maps; a checkpoint is no larger."""
    return 16 * rank * layers * 16 * width


def activation_bytes(tokens: int, layers: int, width: int) -> int:
    """About what a training step keeps from its forward pass; the factor 24 was measured on SmolLM2-135M."""
    return 4 * tokens * 24 * width * layers
