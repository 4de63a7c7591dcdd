"""The form with the LoRA settings of a new run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from pages.shared.fields import Form
from swm.checked import choices, limits
from swm.reporting.commands import recovery_arguments
from swm.settings import PRESET_HELP, PRESETS, RecoverySettings

WORDS = {
    "adapters": "adapters (LoRA)",
    "weights": "the layers' weights",
    "given": "of the text",
    "all": "all layers",
    "above": "from just below the lowest merged layer up",
    "near": "merged layers and neighbours",
    "last": "the last three layers",
}
NUMBERS = {
    "steps": ("Steps", "Training steps of batch size × sequence length tokens."),
    "rank": ("Rank", "Rank of the LoRA matrices."),
    "batch": ("Batch size", "Texts per step."),
    "length": ("Sequence length", "Tokens per text. Longer texts need more memory."),
}
CHOICES = {
    "repair": (
        "Repair first",
        "Before training: fit solves the merged layers' last projection by least squares, which takes about a minute; "
        "scale only gives the hidden state its former size.",
    ),
    "target": (
        "Training target",
        "The recovery text itself, or the original model's probabilities for it (distillation).",
    ),
    "train": (
        "What is trained",
        "Low-rank matrices beside the weights (LoRA), or the weights themselves: for few layers, with a learning rate "
        "of about 3e-4.",
    ),
    "answers": (
        "Answers",
        "Those of the recovery text, or the original model's own: then healing teaches no other style.",
    ),
    "adapt": ("Layers trained", "Training all layers heals best. Fewer train faster."),
    "checkpointing": (
        "Save memory",
        "Activation checkpointing: slower, but needs much less memory. auto: only if memory is short.",
    ),
}


def healing_settings(form: Form, template: dict[str, Any]) -> tuple[RecoverySettings | None, list[str]]:
    """The LoRA settings from the form, and the same as command-line arguments; None without healing.

    Args:
        template: settings of the run being duplicated, with its `recovery` (None: not healed); empty for a new run.
    """
    copied = template.get("recovery") or {}
    copied_preset, presets = copied.get("preset"), list(PRESETS)
    heal = form.toggle(
        "Heal with LoRA",
        bool(copied) or not template,
        key="run_recover",
        help="A short training of low-rank matrices, which are then folded into the weights.",
    )
    if not heal:
        st.caption("The merged model is evaluated as it is.")
        return None, ["--no-recovery"]
    preset = form.choice(
        "Preset",
        presets,
        copied_preset if copied_preset in presets else presets[0],
        format_func=lambda preset: f"{preset}: {PRESET_HELP[preset]}",
        key="run_preset",
        help="LoRA settings to start from.",
    )
    base = PRESETS[preset]
    if preset == copied_preset:
        base = RecoverySettings(**{name: copied.get(name, value) for name, value in vars(base).items()})
    changed = preset == copied_preset or any(name.endswith(f"_{preset}") for name in st.query_params)
    with st.expander("Change settings", expanded=changed):
        settings = edited(form, base, preset)
    return settings, recovery_arguments(vars(settings))


def edited(form: Form, base: RecoverySettings, preset: str) -> RecoverySettings:
    """The preset's settings as edited in the form, which has an input for each common one."""
    columns = st.columns(2)
    values: dict[str, Any] = {}
    for place, (name, (label, help_text)) in enumerate(NUMBERS.items()):
        low, high = limits(RecoverySettings, name)
        values[name] = form.number(
            label,
            low,
            high,
            getattr(base, name),
            place=columns[place % 2],
            key=f"run_{name}_{preset}",
            help=help_text,
        )
    values["learning_rate"] = form.number(
        "Learning rate",
        *limits(RecoverySettings, "learning_rate"),
        base.learning_rate,
        place=columns[0],
        format="%.1e",
        key=f"run_learning_rate_{preset}",
        help="Lower it if the loss jumps.",
    )
    for place, (name, (label, help_text)) in enumerate(CHOICES.items(), 1):
        options = choices(RecoverySettings, name)
        values[name] = form.choice(
            label,
            options,
            getattr(base, name),
            place=columns[place % 2],
            format_func=lambda value: WORDS.get(value, value),
            key=f"run_{name}_{preset}",
            help=help_text,
        )
    alpha = base.alpha * values["rank"] // base.rank  # keeps alpha / rank, the scale of the adapters
    return replace(base, **values, alpha=alpha, warmup_steps=min(base.warmup_steps, values["steps"] // 4))
