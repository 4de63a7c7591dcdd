"""Settings of a recovery and its presets. Plain data, no torch: pages show them, the engine follows them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from swm.errors import SettingsError

FIT_TOKENS = 24_576  # to fit merged layers on: 43 times SmolLM2-135M's width; twice as many made no difference


WINDOW_FIT_TOKENS = 4096  # to fit a window while searching; the plan chosen is fitted on more when it is merged
PLAN_BUDGET = 400  # plans that a planner with a budget tries
PRECISIONS = ("auto", "exact", "bfloat16")  # of a search: exact is the model's own format
PERPLEXITY_TEXTS = ("lambada", "squad")  # measured unless others are named
CHOICES = {
    "loss_on": ("text", "response"),
    "target": ("text", "original", "hidden"),
    "adapt": ("all", "above", "near"),
    "checkpointing": ("auto", "on", "off"),
    "schedule": ("cosine", "linear", "constant"),
    "repair": ("fit", "none"),
}


FORMS = {"str": "text", "int": "a whole number", "float": "a number"}


LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, 1_000_000), "batch": (1, 4096), "accumulate": (1, 4096), "length": (8, 131_072),
    "rank": (1, 1024), "alpha": (1, 8192), "dropout": (0, 0.9), "learning_rate": (1e-8, 1.0),
    "warmup_steps": (0, 1_000_000), "held_out": (1, 10_000), "save_every": (1, 1_000_000),
    "seed": (0, 2**32 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class RecoverySettings:
    """What LoRA does. One step sees batch * accumulate sequences of at most `length` tokens.

    Attributes:
        loss_on: "text" packs the examples and learns every token; "response" learns the answer's tokens only.
        target: "text" learns the text's own next token; "original" learns the original model's probabilities for it
            (distillation), which teaches no new text but what was lost; "hidden" also its states behind merged layers.
        adapt: "all" layers get adapters, or "above": those from two below the lowest merged layer up, since everything
            below gives what it gave before. Nothing has to be differentiated there: the higher the windows, the faster.
            "near": the merged layers and their neighbours.
        checkpointing: "on" computes activations again in the backward pass instead of keeping them: a third slower,
            much less memory; "auto" when they would take more than half of what is free.
        repair: "fit" solves the last projection of each merged layer by least squares before the training, see
            `swm.merging.fit`: a minute that makes up for most of the loss.
        held_out: sequences kept apart; the checkpoint with the lowest loss on them is the result.
    """

    preset: str = "quick"
    texts: str = "instructions"
    loss_on: str = "text"
    target: str = "text"
    adapt: str = "all"
    checkpointing: str = "auto"
    repair: str = "fit"
    steps: int = 120
    batch: int = 8
    accumulate: int = 1
    length: int = 256
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    learning_rate: float = 2e-3
    warmup_steps: int = 10
    schedule: str = "cosine"
    held_out: int = 16
    save_every: int = 30
    seed: int = 1234

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if not ((isinstance(value, (int, float)) and kind == "float") or type(value).__name__ == kind):
                raise SettingsError(f"{field.name} {value!r} cannot be. Give {FORMS[kind]}.")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(f"{name} {value} is out of range. Choose {low:g} to {high:g}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise SettingsError(f"{name} '{getattr(self, name)}' is unknown. Choose {' or '.join(known)}.")


# "paper": the released settings (LLM-Pruner's recovery): 2 epochs of 51,760 examples in batches of 64.
PRESETS = {
    "quick": RecoverySettings(),
    "standard": RecoverySettings(preset="standard", steps=480, learning_rate=1e-3, warmup_steps=30, save_every=60),
    "paper": RecoverySettings(
        preset="paper",
        texts="alpaca-cleaned",
        loss_on="response",
        repair="none",
        steps=1616,
        batch=4,
        accumulate=16,
        rank=8,
        alpha=16,
        dropout=0.05,
        learning_rate=1e-4,
        warmup_steps=100,
        schedule="linear",
        held_out=2000,
        save_every=200,
    ),
}


PRESET_HELP = {
    "quick": "minutes on a processor for 135 M parameters",
    "standard": "four times as long at half the learning rate",
    "paper": "the released settings: alpaca-cleaned from the hub, answers only, hours on a GPU",
}


def preset_settings(preset: str, **changes: Any) -> RecoverySettings:
    """A preset with some settings changed; None leaves a setting as it is."""
    if preset not in PRESETS:
        raise SettingsError(f"'{preset}' is not a recovery preset. Choose one of: {', '.join(PRESETS)}.")
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = replace(PRESETS[preset], **changes)
    if "warmup_steps" not in changes:
        settings = replace(settings, warmup_steps=min(settings.warmup_steps, settings.steps // 4))
    return settings


@dataclass(frozen=True)
class ExperimentSettings:
    """What an experiment measures: the model and its calibration text."""

    model: str
    texts: str = "lambada"
    count: int = 10
    length: int = 128
    seed: int = 1234
    dtype: str = "auto"
