"""The settings of LoRA for a new run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from swm.checked import choices, limits
from swm.reporting.arguments import recovery_arguments
from swm.settings import PRESET_HELP, PRESETS, RecoverySettings

ADAPT = {"all": "all layers", "above": "layers above the lowest merged", "near": "merged layers and neighbours"}
NUMBERS = {
    "steps": ("Steps", "Each sees batch × length tokens."),
    "rank": ("Rank", "Width of the added matrices."),
    "batch": ("Batch", "Texts a step."),
    "length": ("Tokens in each", "Longer: more memory."),
}
CHOSEN = {
    "repair": ("Repair first", "Solve the merged layers' last projection on text before training: about a minute."),
    "target": ("Learn from", "The recovery text itself, or the original model's probabilities on it (distillation)."),
    "adapt": ("Adapters in", "All layers heal most; those above the lowest merged one train faster."),
    "checkpointing": (
        "Save memory",
        "Activations computed again instead of kept: slower, much less memory. auto: when memory is short.",
    ),
}


def healing_settings(template: dict[str, Any]) -> tuple[RecoverySettings | None, list[str]]:
    """LoRA's settings, and the same as arguments; None when healing is left out.

    Args:
        template: of the run that is duplicated: `recovery`, its settings or None; empty for a run from nothing.
    """
    copied = template.get("recovery") or {}
    wanted, presets = copied.get("preset"), list(PRESETS)
    heal = st.toggle(
        "Heal with LoRA",
        bool(copied) or not template,
        key="run_recover",
        help="Short training of small added matrices.",
    )
    preset = st.selectbox(
        "Preset",
        presets,
        index=presets.index(wanted) if wanted in presets else 0,
        format_func=lambda preset: f"{preset}: {PRESET_HELP[preset]}",
        key="run_preset",
        help="Settings of LoRA to start from.",
    )
    base = PRESETS[preset]
    if preset == wanted:
        base = RecoverySettings(**{name: copied.get(name, value) for name, value in vars(base).items()})
    with st.expander("Change settings", expanded=True):
        settings = changed(base, preset)
    return (settings, recovery_arguments(vars(settings))) if heal else (None, ["--no-recovery"])


def changed(base: RecoverySettings, preset: str) -> RecoverySettings:
    """One input for each setting that people change."""
    columns = st.columns(2)
    values: dict[str, Any] = {}
    for place, (name, (label, sentence)) in enumerate(NUMBERS.items()):
        low, high = limits(RecoverySettings, name)
        values[name] = columns[place % 2].number_input(
            label, low, high, getattr(base, name), key=f"run_{name}_{preset}", help=sentence
        )
    values["learning_rate"] = columns[0].number_input(
        "Learning rate",
        *limits(RecoverySettings, "learning_rate"),
        base.learning_rate,
        format="%.1e",
        key=f"run_learning_rate_{preset}",
        help="Lower it when the loss jumps.",
    )
    for place, (name, (label, sentence)) in enumerate(CHOSEN.items(), 1):
        options = choices(RecoverySettings, name)
        values[name] = columns[place % 2].selectbox(
            label,
            options,
            index=options.index(getattr(base, name)),
            format_func=lambda value: ADAPT.get(value, value),
            key=f"run_{name}_{preset}",
            help=sentence,
        )
    alpha = base.alpha * values["rank"] // base.rank  # the same scale at another rank
    return replace(base, **values, alpha=alpha, warmup_steps=min(base.warmup_steps, values["steps"] // 4))
